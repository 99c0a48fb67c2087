//! Dead letters: seen, replayed, discarded; and unknown deliveries, resolved by a person.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// Starts two channels of a tenant, each through a connection to a path of its own, tried once and held if unknown.
async fn scene(nodes: usize) -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::with(nodes, CONFIG).await, Sink::start().await);
    for name in ["first", "second"] {
        gateway.connection(name, "webhook", json!({"url": sink.url(&format!("/{name}"))}), json!({})).await;
    }
    let spec = json!({"candidates": [{"connection": "first"}], "retry": {"type": "none"}, "on_unknown": "hold"});
    gateway.route("webhook", spec).await;
    (gateway, sink)
}

fn message(reference: &str) -> Value {
    json!({"channel": "webhook", "reference": reference, "content": {"payload": {}}})
}

/// Messages that are refused, each with its number as its reference; their ids.
async fn refused(gateway: &TestGateway, sink: &Sink, count: usize) -> Vec<String> {
    sink.answers("/first", [Reply::status(400)]);
    let messages: Vec<_> = (0..count).map(|n| message(&format!("n:{n}"))).collect();
    let answer = gateway.post("/v1/messages/batch", &json!({"messages": messages})).await.expect(200);
    let data = answer["data"].as_array().unwrap();
    let ids: Vec<_> = data.iter().map(|it| it["message"]["id"].as_str().unwrap().to_owned()).collect();
    for id in &ids {
        assert_eq!(gateway.settled(id).await.state, "failed");
    }
    sink.answers("/first", [Reply::status(200)]);
    ids
}

/// Starts a delivery whose request began and was never answered.
async fn held(gateway: &TestGateway, sink: &Sink) -> String {
    sink.answers("/first", [Reply::status(200).after(Duration::from_secs(60)), Reply::status(200)]);
    let id = gateway.send(&message("held")).await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
    id
}

async fn listed(gateway: &TestGateway, query: &str) -> Vec<String> {
    let page = gateway.get(&format!("/v1/dead-letters?{query}")).await;
    let data = page["data"].as_array().unwrap().iter();
    data.map(|it| it["reference"].as_str().unwrap().to_owned()).collect()
}

async fn audit(gateway: &TestGateway, query: &str) -> Vec<Value> {
    gateway.list(&format!("/v1/audit?{query}")).await
}

#[tokio::test]
async fn they_are_listed_by_page_and_found_by_what_is_known_of_them() {
    let (gateway, sink) = scene(1).await;
    refused(&gateway, &sink, 3).await;
    let pinned = json!({"channel": "webhook", "connection": "second", "to": sink.url("/second"), "reference": "other",
        "content": {"payload": {}}});
    sink.answers("/second", [Reply::status(410)]);
    let other = gateway.send(&pinned).await;
    assert_eq!(gateway.settled(&other).await.state, "failed");
    let sent = gateway.send(&message("good")).await;
    gateway.settled(&sent).await;

    assert_eq!(listed(&gateway, "").await, ["other", "n:2", "n:1", "n:0"]);
    let page = gateway.page("/v1/dead-letters?limit=3").await;
    assert_eq!(page.data.len(), 3);
    let cursor = page.next_cursor.as_deref().unwrap();
    assert_eq!(listed(&gateway, &format!("limit=3&cursor={cursor}")).await, ["n:0"]);

    let route = gateway.get("/v1/routes").await["data"][0]["id"].as_str().unwrap().to_owned();
    let letter = page.data[0].clone();
    let (recipient, died) = (letter["to"].as_str().unwrap(), letter["finished_at"].as_str().unwrap());
    let routed = ["n:2", "n:1", "n:0"];
    for (query, expected) in [
        ("state=failed,unknown", &["other", "n:2", "n:1", "n:0"][..]),
        ("state=unknown", &[]),
        ("channel=sms", &[]),
        ("connection=second", &["other"]),
        ("connection=first&channel=webhook", &routed),
        ("provider=email-smtp", &[]),
        ("code=410", &["other"]),
        ("reference=n:1", &["n:1"]),
        (&format!("route={route}"), &routed),
        (&format!("recipient={}", recipient.replace('/', "%2F")), &["other"]),
        (&format!("since={died}"), &["other"]),
        (&format!("until={died}"), &routed),
    ] {
        assert_eq!(listed(&gateway, query).await, expected, "{query}");
    }
    let query = "state=sent&channel=SMS&connection=nobody&route=none&since=today&color=red";
    let problem = gateway.call(Method::GET, &format!("/v1/dead-letters?{query}"), None).await.expect(400);
    let named: BTreeSet<_> = problem["errors"].as_array().unwrap().iter().map(|it| it["pointer"].to_string()).collect();
    let expected = ["channel", "color", "connection", "route", "since", "state"];
    assert_eq!(named, expected.map(|it| format!("\"query/{it}\"")).into());
}

#[tokio::test]
async fn one_is_shown_with_every_attempt_and_replayed() {
    let (gateway, sink) = scene(1).await;
    let id = refused(&gateway, &sink, 1).await.remove(0);
    let letter = gateway.get(&format!("/v1/dead-letters/{id}")).await;
    assert_eq!(letter["message"], json!(id));
    let by_delivery = gateway.get(&format!("/v1/dead-letters/{}", letter["id"].as_str().unwrap())).await;
    assert_eq!(letter, by_delivery);
    assert_eq!(letter["history"].as_array().unwrap().len(), 1, "{letter}");
    assert_eq!((&letter["history"][0]["status"], &letter["connection_uid"]), (&json!(400), &json!("first")));

    let path = format!("/v1/dead-letters/{id}/replay");
    let opened = gateway.post(&path, &json!({"reason": "it is mended"})).await.expect(202);
    assert_eq!(opened["state"], "queued", "{opened}");
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let attempts = gateway.attempt_list(&id).await;
    let made: Vec<_> = attempts.iter().map(|it| (it.number, it.trigger.as_str())).collect();
    assert_eq!(made, [(1, "scheduled"), (2, "manual")]);
    assert_eq!(gateway.event_types(&id).await[1..], ["message.failed", "message.retry_requested", "message.sent"]);
    gateway.post(&path, &json!({})).await.expect(404);
    assert!(listed(&gateway, "").await.is_empty());

    let [done] = <[Value; 1]>::try_from(audit(&gateway, "action=dead_letter.replayed").await).unwrap();
    assert_eq!((&done["subject"], &done["reason"]), (&letter["id"], &json!("it is mended")), "{done}");
    let keys = gateway.settings().command_line(&["key", "list", "--tenant", "one", "--json"]).unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(done["actor"]["id"], keys[0]["id"]);
}

#[tokio::test]
async fn what_can_only_end_again_is_not_replayed() {
    let (gateway, sink) = scene(1).await;
    let ids = refused(&gateway, &sink, 2).await;
    gateway.call(Method::DELETE, &format!("/v1/messages/{}/content", ids[0]), None).await.expect(200);
    gateway.db.sql("update message set expires_at = now() - interval '1 second' where reference = 'n:1'").await;
    for (id, code) in ids.iter().zip(["content_purged", "expired"]) {
        let refused = gateway.post(&format!("/v1/dead-letters/{id}/replay"), &json!({})).await.expect(409);
        assert_eq!(refused["code"], code);
    }
    let started = gateway.post("/v1/dead-letters/replays", &json!({"filter": {}})).await.expect(202);
    let replay = gateway.ended_job(started["id"].as_str().unwrap()).await;
    assert_eq!((replay.done, replay.skipped), (0, 2), "{replay}");
}

#[tokio::test]
async fn all_that_match_are_replayed_no_faster_than_asked_for() {
    const COUNT: usize = 40;
    const RATE: u32 = 20;
    let (gateway, sink) = scene(2).await;
    let ids = refused(&gateway, &sink, COUNT).await;
    // This one fails again, and is not met again.
    let stubborn = format!("/v1/messages/{}", ids[7]);
    let before = sink.received().len();
    let body = json!({"filter": {"connection": "first"}, "rate_per_second": RATE, "reason": "it is back"});
    let began = Instant::now();
    let started = gateway.post("/v1/dead-letters/replays", &body).await.expect(202);
    assert_eq!((&started["matched"], &started["state"]), (&json!(COUNT), &json!("running")), "{started}");
    let path = format!("/v1/dead-letters/replays/{}", started["id"].as_str().unwrap());
    let mut seen = BTreeSet::new();
    let replay = loop {
        let arrived = (sink.received().len() - before) as f64;
        // One step is a fifth of a second's.
        let allowed = f64::from(RATE) * (began.elapsed().as_secs_f64() + 0.2);
        assert!(arrived <= allowed, "{arrived} have arrived, {allowed} may have");
        let replay = gateway.get(&path).await;
        seen.insert(replay["done"].as_u64().unwrap());
        if replay["state"] == "finished" {
            break replay;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{replay}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(seen.len() > 3, "progress was seen: {seen:?}");
    assert_eq!((&replay["done"], &replay["skipped"]), (&json!(COUNT), &json!(0)), "{replay}");
    let sent = eventually("every outcome", || async {
        let replay = gateway.get(&path).await;
        (replay["outcomes"] == json!({"sent": COUNT})).then_some(replay)
    })
    .await;
    assert_eq!(gateway.get("/v1/dead-letters/replays").await["data"], json!([sent]));
    assert_eq!(gateway.get(&stubborn).await["delivery"]["attempts"], 2);
    let [done] = <[Value; 1]>::try_from(audit(&gateway, "action=replay.started").await).unwrap();
    assert_eq!((&done["subject"], &done["after"]["matched"]), (&started["id"], &json!(COUNT)));
}

#[tokio::test]
async fn what_fails_again_is_not_met_again_and_a_limit_holds() {
    let (gateway, sink) = scene(1).await;
    let ids = refused(&gateway, &sink, 5).await;
    sink.answers("/first", [Reply::status(400)]);
    let body = json!({"filter": {"states": ["failed"]}, "rate_per_second": 1000, "limit": 3});
    let started = gateway.post("/v1/dead-letters/replays", &body).await.expect(202);
    let replay = gateway.ended_job(started["id"].as_str().unwrap()).await;
    assert_eq!(replay.done, 3, "{replay}");
    for (n, id) in ids.iter().enumerate() {
        gateway.settled(id).await;
        assert_eq!(gateway.attempts(id).await.len(), if n < 3 { 2 } else { 1 }, "{n}");
    }
    assert_eq!(listed(&gateway, "").await.len(), 5);
}

#[tokio::test]
async fn a_replay_is_stopped() {
    let (gateway, sink) = scene(1).await;
    refused(&gateway, &sink, 5).await;
    let started =
        gateway.post("/v1/dead-letters/replays", &json!({"filter": {}, "rate_per_second": 1})).await.expect(202);
    let path = format!("/v1/dead-letters/replays/{}", started["id"].as_str().unwrap());
    let stopped = gateway.post(&format!("{path}/cancel"), &json!({})).await.expect(200);
    assert_eq!(stopped["state"], "canceled");
    assert!(stopped["done"].as_i64().unwrap() < 5, "{stopped}");
    gateway.post(&format!("{path}/cancel"), &json!({})).await.expect(409);
    let again = gateway.get(&path).await;
    assert_eq!((&again["state"], &again["done"]), (&stopped["state"], &stopped["done"]));
    assert_eq!(audit(&gateway, "action=replay.canceled").await.len(), 1);
}

#[tokio::test]
async fn a_replay_goes_on_when_its_node_is_killed_and_moves_each_once() {
    const COUNT: usize = 60;
    let (mut gateway, sink) = scene(2).await;
    let ids = refused(&gateway, &sink, COUNT).await;
    let body = json!({"filter": {}, "rate_per_second": 20});
    let started = gateway.post("/v1/dead-letters/replays", &body).await.expect(202);
    let id = started["id"].as_str().unwrap().to_owned();
    // One node and then the other: each loses the job in the middle.
    for node in 0..2 {
        let floor = (node + 1) * 15;
        eventually("some progress", || async {
            let replay = gateway.get(&format!("/v1/dead-letters/replays/{id}")).await;
            (replay["done"].as_u64()? as usize >= floor).then_some(())
        })
        .await;
        gateway.kill(node);
        gateway.nodes[node] = Some(gateway.new_node().await);
    }
    let replay = gateway.ended_job(&id).await;
    assert_eq!((replay.done, replay.skipped), (COUNT as u64, 0), "{replay}");
    for id in &ids {
        let view = gateway.settled(id).await;
        // The route holds the deliveries of a killed worker.
        let held = view.state == "unknown" && view.delivery.code.as_deref() == Some("worker_lost");
        assert!(view.state == "sent" || held, "{view}");
    }
    let told =
        "select count(*) || '/' || count(distinct delivery_id) from event where type = 'message.retry_requested'";
    assert_eq!(gateway.db.sql(told).await.trim(), format!("{COUNT}/{COUNT}"));
    let audited = "select count(*) || '/' || count(distinct subject) from audit where action = 'dead_letter.replayed'";
    assert_eq!(gateway.db.sql(audited).await.trim(), format!("{COUNT}/{COUNT}"));
    // The attempts that the lost worker held are labelled.
    let unlabelled = "select count(*) from (select delivery_id from attempt where number > 1
                      group by 1 having count(*) > 1 and not bool_or(disposition = 'unknown')) as twice";
    assert_eq!(gateway.db.sql(unlabelled).await.trim(), "0");
}

#[tokio::test]
async fn a_job_goes_on_when_its_node_is_killed_and_acts_on_each_once() {
    const COUNT: usize = 60;
    let (mut gateway, sink) = scene(2).await;
    let ids = refused(&gateway, &sink, COUNT).await;
    let body = json!({"action": "retry", "filter": {"state": "failed"}, "rate_per_second": 20, "reason": "mended"});
    let started = gateway.post("/v1/message-jobs", &body).await.expect(202);
    let id = started["id"].as_str().unwrap().to_owned();
    for node in 0..2 {
        let floor = (node + 1) * 15;
        eventually("some progress", || async {
            let job = gateway.get(&format!("/v1/message-jobs/{id}")).await;
            (job["done"].as_u64()? as usize >= floor).then_some(())
        })
        .await;
        gateway.kill(node);
        gateway.nodes[node] = Some(gateway.new_node().await);
    }
    let job = gateway.ended_job(&id).await;
    assert_eq!((job.done, job.skipped), (COUNT as u64, 0), "{job}");
    let acted = "select count(*) || '/' || count(distinct subject) from audit where action = 'message.retried'";
    assert_eq!(gateway.db.sql(acted).await.trim(), format!("{COUNT}/{}", ids.len()));
}

#[tokio::test]
async fn they_are_discarded_with_a_reason_and_stay_on_record() {
    let (gateway, sink) = scene(1).await;
    let ids = refused(&gateway, &sink, 4).await;
    let path = format!("/v1/dead-letters/{}", ids[0]);
    gateway.post(&format!("{path}/discard"), &json!({})).await.expect(422);
    let gone = gateway.post(&format!("{path}/discard"), &json!({"reason": "a test"})).await.expect(200);
    assert_eq!((&gone["discard_reason"], &gone["state"]), (&json!("a test"), &json!("failed")), "{gone}");
    let again = gateway.post(&format!("{path}/discard"), &json!({"reason": "a test"})).await.problem(409);
    assert_eq!(again.code, "discarded");
    assert_eq!(listed(&gateway, "").await, ["n:3", "n:2", "n:1"]);
    assert_eq!(gateway.get(&path).await["discarded_at"], gone["discarded_at"]);
    assert_eq!(gateway.event_types(&ids[0]).await.last().unwrap(), "message.discarded");

    let body = json!({"filter": {"reference": "n:2"}, "reason": "old"});
    let some = gateway.post("/v1/dead-letters/discards", &body).await.expect(200);
    assert_eq!(some, json!({"discarded": 1, "more": false}));
    assert_eq!(listed(&gateway, "").await, ["n:3", "n:1"]);
    let problem = gateway.post("/v1/dead-letters/discards", &json!({"reason": "", "filter": {"channel": "S"}})).await;
    let problem = problem.problem(422);
    let named = problem.pointers();
    assert_eq!(named, ["/filter/channel", "/reason"], "{problem}");
    let odd = json!({"reason": "old", "filter": {"connection": "<\0", "route": "\0", "code": "\0"}});
    let problem = gateway.post("/v1/dead-letters/discards", &odd).await.problem(422);
    let named = problem.pointers();
    assert_eq!(named, ["/filter/code", "/filter/connection", "/filter/route"], "{problem}");
    gateway.post("/v1/dead-letters/discards", &json!({"reason": "all"})).await.expect(422);

    let actions: Vec<_> =
        audit(&gateway, "").await.iter().map(|it| it["action"].as_str().unwrap().to_owned()).collect();
    let discards: Vec<_> = actions.iter().filter(|action| action.starts_with("dead_letter")).collect();
    assert_eq!(discards, ["dead_letters.discarded", "dead_letter.discarded"]);
    // A replay of all leaves them alone; by its id one can be had back.
    let started = gateway.post("/v1/dead-letters/replays", &json!({"filter": {}})).await.expect(202);
    assert_eq!(gateway.ended_job(started["id"].as_str().unwrap()).await["done"], 2);
    gateway.post(&format!("{path}/replay"), &json!({})).await.expect(202);
    assert_eq!(gateway.settled(&ids[0]).await.state, "sent");
}

#[tokio::test]
async fn what_is_held_is_resolved_as_sent_as_failed_or_by_sending_again() {
    let (gateway, sink) = scene(1).await;
    let by_hand = |id: &str| format!("/v1/messages/{id}/resolve");
    let sent = held(&gateway, &sink).await;
    let body = json!({"as": "sent", "reason": "their log shows it", "external_id": "X1"});
    let view = gateway.post(&by_hand(&sent), &body).await.expect(200);
    assert_eq!((&view["state"], &view["delivery"]["external_id"]), (&json!("sent"), &json!("X1")), "{view}");
    assert_eq!(gateway.attempts(&sent).await, ["first:unknown"], "the ledger keeps what was known");
    assert_eq!(gateway.event_types(&sent).await[1..], ["message.unknown", "message.sent"]);
    gateway.post(&by_hand(&sent), &body).await.expect(409);

    let failed = held(&gateway, &sink).await;
    let view = gateway.post(&by_hand(&failed), &json!({"as": "failed", "reason": "never came"})).await.expect(200);
    assert_eq!(view["state"], "failed");
    assert_eq!(gateway.event_types(&failed).await[1..], ["message.unknown", "message.failed"]);

    let again = held(&gateway, &sink).await;
    // A replay of all leaves out deliveries that may have been sent.
    let started = gateway.post("/v1/dead-letters/replays", &json!({"filter": {}, "limit": 1})).await.expect(202);
    gateway.ended_job(started["id"].as_str().unwrap()).await;
    assert_eq!(gateway.settled(&failed).await.state, "sent");
    assert_eq!(gateway.message(&again).await.state, "unknown");
    gateway.post(&by_hand(&again), &json!({"as": "again", "reason": "they lost it"})).await.expect(200);
    assert_eq!(gateway.settled(&again).await.state, "sent");
    assert_eq!(gateway.attempts(&again).await, ["first:unknown", "first:accepted"]);
    let keys: BTreeSet<_> = sink.received().iter().rev().take(1).map(|it| it.header("webhook-id").to_owned()).collect();
    assert!(sink.received().iter().filter(|it| keys.contains(it.header("webhook-id"))).count() == 2, "the same key");

    let done = audit(&gateway, "action=message.resolved").await;
    let told: Vec<_> = done.iter().rev().map(|it| (&it["subject"], &it["after"]["state"], &it["reason"])).collect();
    assert_eq!(
        json!(told),
        json!([
            [sent, "sent", "their log shows it"],
            [failed, "failed", "never came"],
            [again, "queued", "they lost it"]
        ])
    );
    let stats = gateway.get("/v1/stats").await;
    assert_eq!(stats["totals"]["states"], json!({"sent": 3}), "{stats}");
    let bad = json!({"as": "lost", "reason": ""});
    gateway.post(&by_hand(&again), &bad).await.expect(422);
}

/// A delivery that was resolved by sending again stays with its first connection.
#[tokio::test]
async fn what_may_have_been_sent_goes_to_nobody_else() {
    let (gateway, sink) = scene(1).await;
    let spec = json!({"candidates": [{"connection": "second"}, {"connection": "first"}], "retry": {"type": "none"},
        "on_unknown": "hold"});
    let id = held(&gateway, &sink).await;
    gateway.route("webhook", spec).await;
    gateway.post(&format!("/v1/dead-letters/{id}/replay"), &json!({})).await.expect(202);
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["first:unknown", "first:accepted"]);
}

#[tokio::test]
async fn another_tenants_do_not_exist() {
    let (gateway, sink) = scene(1).await;
    let id = refused(&gateway, &sink, 1).await.remove(0);
    let unknown = held(&gateway, &sink).await;
    let started = gateway.post("/v1/dead-letters/replays", &json!({"filter": {"reference": "x"}})).await.expect(202);
    let job = started["id"].as_str().unwrap();
    let other = gateway.key_of("two", ALL_SCOPES);
    let reason = json!({"reason": "mine now"});
    for (method, path, body) in [
        (Method::GET, format!("/v1/dead-letters/{id}"), None),
        (Method::POST, format!("/v1/dead-letters/{id}/replay"), Some(reason.clone())),
        (Method::POST, format!("/v1/dead-letters/{id}/discard"), Some(reason.clone())),
        (Method::GET, format!("/v1/dead-letters/replays/{job}"), None),
        (Method::POST, format!("/v1/dead-letters/replays/{job}/cancel"), None),
        (Method::POST, format!("/v1/messages/{unknown}/resolve"), Some(json!({"as": "sent", "reason": "x"}))),
    ] {
        let answer = gateway.call_as(&other, method.clone(), &path, body.as_ref()).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
    }
    for list in ["/v1/dead-letters", "/v1/dead-letters/replays"] {
        assert_eq!(gateway.call_as(&other, Method::GET, list, None).await.expect(200)["data"], json!([]), "{list}");
    }
    let own = gateway.call_as(&other, Method::GET, "/v1/audit", None).await.expect(200);
    let actions: Vec<_> = own["data"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["key.created", "tenant.created"], "its own beginning alone: {own}");
    let all = json!({"filter": {}, "reason": "all"});
    let none = gateway.call_as(&other, Method::POST, "/v1/dead-letters/discards", Some(&all)).await.expect(200);
    assert_eq!(none["discarded"], 0);
    let started = gateway.call_as(&other, Method::POST, "/v1/dead-letters/replays", Some(&all)).await.expect(202);
    assert_eq!(started["matched"], 0);
    assert_eq!(listed(&gateway, "").await, ["held", "n:0"]);
}

#[tokio::test]
async fn the_command_line_does_all_of_it() {
    let (gateway, sink) = scene(1).await;
    let ids = refused(&gateway, &sink, 4).await;
    let unknown = held(&gateway, &sink).await;
    let url = gateway.url("");
    let run = |arguments: &[&str]| {
        let arguments = [arguments, &["--url", &url, "--key", &gateway.key]].concat();
        gateway.settings().command_line(&arguments)
    };
    let printed = run(&["dead-letters", "list", "--state", "failed", "--connection", "first"]).unwrap();
    assert_eq!(printed.matches("dlv_").count(), 4, "{printed}");
    let printed = run(&["dead-letters", "show", &ids[0]]).unwrap();
    assert!(printed.contains("rejected_transient") && printed.contains("first"), "{printed}");
    let printed = run(&["attempts", &ids[0], "--json"]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap()["data"].as_array().unwrap().len(), 1);
    run(&["dead-letters", "discard", &ids[0], "--reason", "a test"]).unwrap();
    run(&["dead-letters", "replay", &ids[1], "--reason", "it is mended"]).unwrap();
    assert_eq!(gateway.settled(&ids[1]).await.state, "sent");
    let printed = run(&["dead-letters", "discard", "--all", "--reference", "n:3", "--reason", "old"]).unwrap();
    assert!(printed.contains('1'), "{printed}");
    let printed = run(&["dead-letters", "replay", "--all", "--rate", "100", "--json"]).unwrap();
    let replay: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&replay["state"], &replay["done"]), (&json!("finished"), &json!(1)), "{replay}");
    let printed = run(&["message", "resolve", &unknown, "--as", "sent", "--reason", "they have it"]).unwrap();
    assert!(printed.contains("sent"), "{printed}");
    assert!(run(&["message", "resolve", &unknown, "--as", "sent", "--reason", "again"]).is_err());
    let printed = run(&["audit", "--action", "message.resolved"]).unwrap();
    assert!(printed.contains("they have it") && printed.contains(&unknown), "{printed}");
    let printed = run(&["dead-letters", "replays"]).unwrap();
    assert!(printed.contains("finished"), "{printed}");
}
