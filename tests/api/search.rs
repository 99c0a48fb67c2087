//! `GET /v1/messages` by recipient, connection, provider, code, time, batch and metadata.

use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    sink::{Reply, Sink},
};

/// The references of the messages that a search finds, the newest first.
async fn found(gateway: &TestGateway, query: &str) -> Vec<String> {
    let page = gateway.get(&format!("/v1/messages?{query}")).await;
    let reference = |message: &Value| message["reference"].as_str().unwrap_or_default().to_owned();
    page["data"].as_array().unwrap_or_else(|| panic!("{page}")).iter().map(reference).collect()
}

fn message(reference: &str, metadata: Value) -> Value {
    json!({"channel": "webhook", "content": {"payload": 1}, "reference": reference, "metadata": metadata})
}

#[tokio::test]
async fn messages_are_found_by_where_they_went_and_what_came_of_them() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let failing = Sink::start().await;
    failing.answers("/in", [Reply::status(410)]);
    let good = gateway.webhook(&sink, "/in").await;
    let config = json!({"url": failing.url("/in")});
    let secrets = json!({"signing_key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    let bad = gateway.connection("other", "webhook", config, secrets).await;
    gateway.settled(&gateway.send(&message("a", json!({}))).await).await;
    let mut pinned = message("b", json!({}));
    pinned["connection"] = json!(bad);
    let refused = gateway.send(&pinned).await;
    let view = eventually("the refused message ends", async || {
        let view = gateway.message(&refused).await;
        (view["state"] == "failed").then_some(view)
    })
    .await;
    let code = view["delivery"]["code"].as_str().unwrap();

    assert_eq!(found(&gateway, &format!("connection={good}")).await, ["a"]);
    assert_eq!(found(&gateway, "connection=other").await, ["b"]);
    assert_eq!(found(&gateway, "provider=webhook").await, ["b", "a"]);
    assert_eq!(found(&gateway, "provider=webhook&limit=1").await, ["b"]);
    assert_eq!(found(&gateway, "provider=email-smtp").await, [""; 0]);
    assert_eq!(found(&gateway, &format!("code={code}")).await, ["b"]);
    assert_eq!(found(&gateway, &format!("code={code}&connection={good}")).await, [""; 0]);
    assert_eq!(found(&gateway, "state=failed").await, ["b"]);
    assert_eq!(found(&gateway, "state=sent&provider=webhook").await, ["a"]);
}

#[tokio::test]
async fn messages_are_found_by_recipient_batch_metadata_and_time() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let batch =
        json!({"messages": [message("a", json!({"order": "A-7", "items": 3})), message("b", json!({"order": "B:1"}))]});
    let answer = gateway.post("/v1/messages/batch", &batch).await.expect(200);
    let batch = answer["batch"].as_str().unwrap();
    assert_eq!(answer["data"][0]["message"]["batch"], json!(batch));
    let mut other = message("c", json!({"order": "A-7"}));
    other["to"] = json!("https://example.com/hook");
    let accepted = gateway.post("/v1/messages", &other).await.expect(202);
    assert_eq!(accepted["batch"], Value::Null);

    assert_eq!(found(&gateway, &format!("batch={batch}")).await, ["b", "a"]);
    assert_eq!(found(&gateway, "metadata=order:A-7").await, ["c", "a"]);
    assert_eq!(found(&gateway, "metadata=items:3").await, ["a"]);
    assert_eq!(found(&gateway, "metadata=order:B:1").await, ["b"]);
    assert_eq!(found(&gateway, &format!("metadata=order:A-7&batch={batch}")).await, ["a"]);
    let at = accepted["created_at"].as_str().unwrap();
    assert_eq!(found(&gateway, &format!("since={at}")).await, ["c"]);
    assert_eq!(found(&gateway, &format!("until={at}")).await, ["b", "a"]);

    let key = gateway.key_of("two", "messages:read");
    let page = gateway.call_as(&key, reqwest::Method::GET, "/v1/messages?metadata=order:A-7", None).await.expect(200);
    assert_eq!(page["data"], json!([]), "another tenant's messages are not found");
}

#[tokio::test]
async fn a_recipient_is_found_however_its_domain_is_written() {
    let gateway = TestGateway::start().await;
    let config = json!({"host": "127.0.0.1", "port": 9, "tls": "none", "from": "shop@example.com"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    for to in ["Ann@Example.org", "bob@example.org"] {
        let mail = json!({"channel": "email", "to": to, "connection": "mail", "send_at": "2099-01-01T00:00:00Z",
            "reference": to, "content": {"subject": "x", "text": "x"}});
        gateway.send(&mail).await;
    }
    assert_eq!(found(&gateway, "recipient=Ann@example.org").await, ["Ann@Example.org"]);
    assert_eq!(found(&gateway, "recipient=Ann@EXAMPLE.org&state=scheduled").await, ["Ann@Example.org"]);
    assert_eq!(found(&gateway, "recipient=carl@example.org").await, [""; 0]);
}

#[tokio::test]
async fn queued_messages_are_found_wherever_they_wait() {
    let mut gateway = TestGateway::with(0, "").await;
    // Nothing is dispatched.
    let node = gateway.new_node_as(&["api"]).await;
    gateway.nodes.push(Some(node));
    let config = json!({"url": "https://example.org/in"});
    let secrets = json!({"signing_key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    gateway.connection("hook", "webhook", config, secrets).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}]})).await;
    let send = async |reference: &str, member: (&str, Value)| {
        let mut message = message(reference, json!({"kind": "waits"}));
        message[member.0] = member.1;
        gateway.send(&message).await.replace("msg_", "")
    };
    send("queue", ("priority", json!("high"))).await;
    send("turn", ("ordering_key", json!("k"))).await;
    send("line", ("ordering_key", json!("k"))).await;
    send("later", ("send_at", json!("2099-01-01T00:00:00Z"))).await;
    let again = send("again", ("priority", json!("normal"))).await;
    let lease = send("lease", ("priority", json!("low"))).await;
    let ended = send("ended", ("priority", json!("normal"))).await;
    let list = json!({"channels": [{"channel": "webhook", "content": {"payload": 1}},
        {"channel": "webhook", "content": {"payload": 2}}], "reference": "list"});
    gateway.send(&list).await;
    let delivery =
        "insert into delivery (tenant_id, id, message_id, state, attempts, next_attempt_at, updated_at, finished_at)
                    select tenant_id, id, id,";
    let sql = format!(
        "{delivery} 'queued', 1, now(), now(), null from message where id = '{again}';
         {delivery} 'canceled', 0, null, now(), now() from message where id = '{ended}';
         delete from queue where delivery_id in ('{ended}', '{lease}');
         insert into lease (tenant_id, id, node, expires_at, deliveries)
         select tenant_id, gen_random_uuid(), gen_random_uuid(), 'infinity', array[id] from message where id = '{lease}'"
    );
    gateway.db.sql(&sql).await;

    let waiting = ["list", "lease", "again", "line", "turn", "queue"];
    assert_eq!(found(&gateway, "state=queued").await, waiting);
    assert_eq!(found(&gateway, "state=queued&metadata=kind:waits&limit=2").await, ["lease", "again"]);
    assert_eq!(found(&gateway, "state=queued&reference=turn").await, ["turn"]);
    assert_eq!(found(&gateway, "state=scheduled").await, ["later"]);
    assert_eq!(found(&gateway, "state=canceled").await, ["ended"]);
    assert_eq!(found(&gateway, "state=accepted").await, [""; 0]);
    // So many that a walk from the newest message on takes the place of a look at all of them.
    let many = "insert into queue (tenant_id, delivery_id, due_at, priority)
                select t.id, gen_random_uuid(), now(), 1 from tenant t, generate_series(1, 10001) where t.name = 'one'";
    gateway.db.sql(many).await;
    assert_eq!(found(&gateway, "state=queued").await, waiting);
}

#[tokio::test]
async fn a_message_is_found_by_each_of_its_channels() {
    let mut gateway = TestGateway::with(0, "").await;
    let node = gateway.new_node_as(&["api"]).await;
    gateway.nodes.push(Some(node));
    for (uid, channel) in [("mail", "email"), ("texts", "sms")] {
        gateway.connection(uid, "fixture", json!({"url": "https://example.org/in"}), json!({"token": "t"})).await;
        gateway.route(channel, json!({"candidates": [{"connection": uid}]})).await;
    }
    let leg = |channel: &str, to: &str| json!({"channel": channel, "to": to, "content": {"text": "x"}});
    let (mail, text) = (leg("email", "ann@example.org"), leg("sms", "+14155550123"));
    let both = json!({"channels": [mail.clone(), text.clone()]});
    for (mut message, reference) in [(text, "text"), (both, "both"), (mail, "mail")] {
        message["reference"] = json!(reference);
        gateway.send(&message).await;
    }
    assert_eq!(found(&gateway, "channel=email").await, ["mail", "both"]);
    assert_eq!(found(&gateway, "channel=sms").await, ["both", "text"]);
    assert_eq!(found(&gateway, "channel=sms&limit=1").await, ["both"]);
    assert_eq!(found(&gateway, "channel=sms&state=queued").await, ["both", "text"]);
    assert_eq!(found(&gateway, "channel=push").await, [""; 0]);
    // As if its first leg had been tried.
    let tried = "update delivery d set connection_id = c.id, provider = c.provider, code = '421' from connection c
                 where c.uid = 'mail' and d.begun_at is not null";
    gateway.db.sql(tried).await;
    for filter in ["connection=mail", "provider=fixture", "code=421", "connection=mail&provider=fixture&code=421"] {
        assert_eq!(found(&gateway, &format!("{filter}&state=queued")).await, ["both"], "{filter}");
        assert_eq!(found(&gateway, filter).await, ["both"], "{filter}");
        assert_eq!(found(&gateway, &format!("{filter}&state=failed")).await, [""; 0], "{filter}");
    }
    assert_eq!(found(&gateway, "connection=texts&state=queued").await, [""; 0]);
}

#[tokio::test]
async fn a_filter_that_is_wrong_is_named() {
    let gateway = TestGateway::start().await;
    for (query, parameter) in [
        ("batch=7", "batch"),
        ("metadata=order", "metadata"),
        ("metadata=:x", "metadata"),
        ("since=yesterday", "since"),
        ("connection=nobody", "connection"),
        ("state=lost", "state"),
    ] {
        let answer = gateway.call(reqwest::Method::GET, &format!("/v1/messages?{query}"), None).await.problem(400);
        assert_eq!(answer.code, "invalid_parameter", "{answer}");
        assert!(answer["errors"].to_string().contains(&format!("query/{parameter}")), "{answer}");
    }
    let all = "/v1/messages?state=lost&limit=0&channel=SMS&connection=nobody&until=1969-01-01T00:00:00Z&colour=1";
    let answer = gateway.call(reqwest::Method::GET, all, None).await.problem(400);
    let pointers: std::collections::BTreeSet<_> = answer.errors.iter().map(|it| it.pointer.clone()).collect();
    let expected = ["channel", "colour", "connection", "limit", "state", "until"].map(|name| format!("query/{name}"));
    assert_eq!(pointers, expected.into(), "{answer}");
}
