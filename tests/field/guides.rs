//! The guides' programs are run here, as they stand there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    gateway::TestGateway,
    messages::hook,
    peer,
    sink::{Received, Reply, Sink},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Returns the programs of a guide as files: each block of code whose first line names it.
fn programs(guide: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(xtask::project::root().join("docs").join(guide)).unwrap();
    for block in text.split("\n```").filter_map(|block| block.split_once('\n')).map(|(_, code)| code) {
        let name = block.lines().next().unwrap_or_default().trim_start_matches(['#', '/', ' ']);
        if [".py", ".mjs"].iter().any(|kind| name.ends_with(kind)) && !name.contains(' ') {
            fs::write(folder.path().join(name), block).unwrap();
        }
    }
    folder
}

/// Runs a program with a JSON value as its input; returns whether it ended well, and its output.
async fn run(program: PathBuf, arguments: Vec<String>, folder: &Path, input: Value) -> (bool, String) {
    let folder = folder.to_owned();
    let run = move || {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the interpreter runs");
        serde_json::to_writer(child.stdin.take().unwrap(), &input).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn python(folder: &Path, code: &str, input: Value) -> (bool, String) {
    let code = format!("import json, sys\ninput = json.load(sys.stdin)\n{code}");
    let python = peer::python().unwrap_or_else(|| PathBuf::from("python3"));
    run(python, vec!["-c".to_owned(), code], folder, input).await
}

fn request(received: &Received, secrets: &[&str]) -> Value {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: serde_json::Map<_, _> =
        names.iter().map(|it| ((*it).to_owned(), json!(received.header(it)))).collect();
    json!({"headers": headers, "body": String::from_utf8_lossy(&received.body), "secrets": secrets})
}

#[tokio::test]
async fn the_guides_verifiers_believe_what_was_signed_and_nothing_else() {
    if peer::python().is_none() {
        return;
    }
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/").await;
    let message = json!({"channel": "webhook", "content": {"payload": {"grüße": [1.0, "ä"]}}});
    assert_eq!(gateway.settled(&gateway.send(&message).await).await.state, "sent");
    let received = sink.received();
    let genuine = request(&received[0], &["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", SECRET]);
    let changed = |pointer: &str, value: &str| {
        let mut other = genuine.clone();
        *other.pointer_mut(pointer).unwrap() = json!(value);
        other
    };
    let forged = [
        changed("/body", r#"{"grüße":[1.0,"ä"] }"#),
        changed("/headers/webhook-id", "msg_other"),
        changed("/headers/webhook-timestamp", "1600000000"),
        changed("/headers/webhook-timestamp", "soon"),
        changed("/headers/webhook-signature", "v1,AAAA"),
        changed("/headers/webhook-signature", ""),
        changed("/secrets/1", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ];
    let programs = programs("sending.md");
    let py = "from verify import verify\nverify(input['secrets'], input['headers'], input['body'].encode())";
    let js = "import { readFileSync } from 'node:fs';\nimport { verify } from './verify.mjs';\n\
              const it = JSON.parse(readFileSync(0, 'utf8'));\nverify(it.secrets, it.headers, Buffer.from(it.body));";
    fs::write(programs.path().join("main.mjs"), js).unwrap();
    let node = |input| run(PathBuf::from("node"), vec!["main.mjs".to_owned()], programs.path(), input);
    for (believed, said) in [python(programs.path(), py, genuine.clone()).await, node(genuine.clone()).await] {
        assert!(believed, "{said}");
    }
    for input in forged {
        for (believed, said) in [python(programs.path(), py, input.clone()).await, node(input.clone()).await] {
            assert!(
                !believed && (said.contains("no signature matches") || said.contains("not signed lately")),
                "{said}"
            );
        }
    }
}

#[tokio::test]
async fn the_guides_clients_send_once_page_and_follow() {
    if peer::python().is_none() {
        return;
    }
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/").await;
    let programs = programs("sending.md");
    // A server that fails first: the client comes again, with the same key.
    let flaky = Sink::start().await;
    flaky.answers("/v1/messages", [Reply::status(503).header("retry-after", "0"), Reply::status(500)]);
    let message = json!({"channel": "webhook", "idempotency_key": "order-1001-paid", "content": {"payload": {}}});
    let input = |url: String| json!({"url": url, "key": gateway.key, "message": message});
    let send = "from sending import send\nprint(send(input['url'], input['key'], input['message'])['id'])";
    let (_, said) = python(programs.path(), send, input(flaky.url(""))).await;
    let keys: Vec<Value> = flaky
        .received()
        .iter()
        .map(|it| serde_json::from_slice::<Value>(&it.body).unwrap()["idempotency_key"].clone())
        .collect();
    assert!(keys.len() >= 3 && keys.iter().all(|key| *key == "order-1001-paid"), "{keys:?} {said}");

    let (fine, first) = python(programs.path(), send, input(gateway.url(""))).await;
    let (_, again) = python(programs.path(), send, input(gateway.url(""))).await;
    assert!(fine && first == again, "{first} {again}");
    let bad = json!({"url": gateway.url(""), "key": gateway.key, "message": {"channel": "webhook", "colour": "red"}});
    let (fine, said) = python(programs.path(), send, bad).await;
    assert!(!fine && said.contains("422") && said.contains("colour"), "{said}");
    assert_eq!(gateway.settled(first.trim()).await.state, "sent");
    assert_eq!(sink.received().len(), 1, "it was sent once");

    for _ in 0..3 {
        gateway.send(&hook()).await;
    }
    let page = "import pages\nreal = pages.urllib.parse.urlencode\n\
                pages.urllib.parse.urlencode = lambda query: real({**query, 'limit': 2})\n\
                print(len({it['id'] for it in pages.entries(input['url'], input['key'], '/v1/messages')}))";
    let (fine, said) = python(programs.path(), page, input(gateway.url(""))).await;
    assert!(fine && said.trim() == "4", "{said}");

    let follow = "import events\nseen = []\n\
                  for event in events.follow(input['url'], input['key'], input['after'], ['message.sent']):\n    \
                  seen.append(event['message'])\n    \
                  if len(seen) == 4: break\n\
                  print(len(set(seen)))";
    let mut input = input(gateway.url(""));
    let all = gateway.get("/v1/events?limit=1").await;
    input["after"] = json!("evt_00000000000000000000000000000001");
    let (fine, said) = python(programs.path(), follow, input).await;
    assert!(fine && said.trim() == "4", "{said} {all}");
}
