//! A worker that dies beside a commit: at each there is a point that ends the process, another one takes over, and
//! the promise holds.

use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{Answer, TestGateway},
    messages::hook,
    proxy::{Loss, Proxy, Writer},
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// Due soon, so that it goes through the queue.
fn due_soon() -> Value {
    let at = angarium::clock::now() + jiff::SignedDuration::from_millis(400);
    json!({"channel": "webhook", "content": {"payload": {}}, "send_at": at.to_string()})
}

async fn posted(gateway: &TestGateway, message: &Value) -> Option<Answer> {
    gateway.try_post_with("/v1/messages", &[("idempotency-key", "order-1")], message).await
}

/// Starts a gateway with a webhook, whose node fails as `failpoints` says.
async fn armed(failpoints: &str) -> (TestGateway, Sink) {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    gateway.arm(failpoints).await;
    (gateway, sink)
}

/// A gateway with two webhooks, which are asked in turn.
async fn with_two(on_unknown: &str) -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    for uid in ["first", "second"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    let candidates = json!([{"connection": "first"}, {"connection": "second"}]);
    gateway.route("webhook", json!({"candidates": candidates, "on_unknown": on_unknown})).await;
    (gateway, sink)
}

/// Starts a gateway with two webhooks, whose node fails as `failpoints` says; the second one is asked because the first
/// refuses.
async fn armed_for_the_second(on_unknown: &str, failpoints: &str) -> (TestGateway, Sink) {
    let (mut gateway, sink) = with_two(on_unknown).await;
    sink.answers("/first", [Reply::status(503), Reply::status(200)]);
    gateway.arm(failpoints).await;
    (gateway, sink)
}

/// The worker is lost when the second of two has taken the message without an intent: no other candidate is asked.
async fn only_the_second_is_asked(mut gateway: TestGateway, sink: Sink) {
    gateway.arm("outcome.before_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    assert_eq!(count(&gateway, "intent").await, 0, "the message itself says who was asked");
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "second:accepted"]);
    assert_eq!((sink.received_at("/first").len(), sink.received_at("/second").len()), (0, 2));
}

async fn count(gateway: &TestGateway, table: &str) -> usize {
    gateway.db.sql(&format!("select count(*) from {table}")).await.trim().parse().unwrap()
}

async fn only_message(gateway: &TestGateway) -> String {
    let list = gateway.get("/v1/messages").await;
    let [message] = &list["data"].as_array().unwrap()[..] else { panic!("{list}") };
    message["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn killed_before_the_accept_commit_there_is_no_202_and_the_key_makes_one_message() {
    let (mut gateway, sink) = armed("accept.before_commit=abort").await;
    assert!(posted(&gateway, &hook()).await.is_none(), "nobody may have been told that it was accepted");
    gateway.died().await;
    assert_eq!(count(&gateway, "message").await, 0);
    gateway.take_over().await;
    let answer = posted(&gateway, &hook()).await.unwrap();
    assert!(!answer.headers.contains_key("idempotency-replayed"));
    let id = answer.expect(202)["id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!((count(&gateway, "message").await, sink.received().len()), (1, 1));
}

#[tokio::test]
async fn killed_after_the_accept_commit_a_retry_gets_the_stored_answer() {
    let (mut gateway, sink) = armed("accept.after_commit=abort").await;
    assert!(posted(&gateway, &hook()).await.is_none());
    gateway.died().await;
    gateway.take_over().await;
    let stored = only_message(&gateway).await;
    let answer = posted(&gateway, &hook()).await.unwrap();
    assert_eq!(answer.headers["idempotency-replayed"], "true");
    assert_eq!(answer.expect(202)["id"], stored);
    let other = json!({"channel": "webhook", "content": {"payload": {"other": true}}});
    posted(&gateway, &other).await.unwrap().expect(422);
    assert_eq!(gateway.settled(&stored).await.state, "sent");
    assert_eq!((count(&gateway, "message").await, sink.received().len()), (1, 1));
}

#[tokio::test]
async fn an_accept_whose_commit_was_not_answered_is_asked_after() {
    let (gateway, sink) = armed("accept.after_commit=error").await;
    let id = posted(&gateway, &hook()).await.unwrap().expect(202)["id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["hook:accepted"]);
    assert_eq!((count(&gateway, "message").await, sink.received().len()), (1, 1));
}

#[tokio::test]
async fn killed_before_the_claim_commit_the_queue_still_has_it() {
    let (mut gateway, sink) = armed("claim.before_commit=abort").await;
    let id = gateway.send(&due_soon()).await;
    gateway.died().await;
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["hook:accepted"]);
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn killed_after_the_claim_it_is_run_again_when_the_lease_ends_without_a_duplicate() {
    let (mut gateway, sink) = armed("claim.after_commit=abort").await;
    let id = gateway.send(&due_soon()).await;
    gateway.died().await;
    assert_eq!((count(&gateway, "queue").await, count(&gateway, "lease").await), (0, 1));
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:accepted"]);
    assert_eq!(sink.received().len(), 1, "no request had begun, so there is no duplicate");
}

#[tokio::test]
async fn held_after_the_claim_beyond_the_lease_it_is_not_sent_by_the_sleeper() {
    let go = tempfile::tempdir().unwrap();
    let file = go.path().join("go");
    let (mut gateway, sink) = armed(&format!("claim.after_commit=pause:{}", file.display())).await;
    let id = gateway.send(&due_soon()).await;
    gateway.logged(0, "a failpoint is reached").await;
    let second = gateway.new_node().await;
    gateway.nodes.insert(0, Some(second));
    assert_eq!(gateway.settled(&id).await.state, "sent");
    std::fs::write(&file, "").unwrap();
    gateway.logged(1, "leases were lost").await;
    assert_eq!(sink.received().len(), 1);
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:accepted"]);
}

#[tokio::test]
async fn killed_after_the_intent_the_same_connection_is_asked_again() {
    let (mut gateway, sink) = armed_for_the_second("retry", "intent.after_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    assert!(sink.received_at("/second").is_empty(), "the request had not begun");
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["first:rejected_transient", "second:unknown", "second:accepted"]);
    assert_eq!(sink.received_at("/first").len(), 1);
}

#[tokio::test]
async fn killed_after_the_intent_it_is_held_where_the_route_says_so() {
    // The first has one too.
    let (mut gateway, sink) = armed_for_the_second("hold", "intent.after_commit=abort@2").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
    assert_eq!(gateway.attempts(&id).await, ["first:rejected_transient", "second:unknown"]);
    assert!(sink.received_at("/second").is_empty());
    assert_eq!(count(&gateway, "intent").await, 0, "the attempt stands for it");
}

#[tokio::test]
async fn killed_after_a_2xx_before_the_outcome_commit_it_is_labelled_unknown() {
    let (mut gateway, sink) = armed("outcome.before_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    assert_eq!(sink.received().len(), 1);
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:accepted"]);
    let keys: Vec<_> = sink.received().iter().map(|it| it.header("webhook-id").to_owned()).collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1], "the receiver can tell that it has it");
}

/// Rules put the second candidate first: that is on record with the message, so that no intent tells it.
#[tokio::test]
async fn killed_after_a_2xx_of_whom_rules_put_first_nobody_else_is_asked() {
    let (gateway, sink) = with_two("retry").await;
    let rule = json!({"name": "Second", "then": {"connections": [{"connection": "second", "score": 0.5}]}});
    gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(201);
    only_the_second_is_asked(gateway, sink).await;
}

/// A message records the candidate that a script puts first, whatever the script answers later: here it changes its
/// answer before the lost worker's lease can end.
#[tokio::test]
async fn killed_after_a_2xx_of_whom_a_script_put_first_nobody_else_is_asked() {
    let (gateway, sink) = with_two("retry").await;
    let source = "fn route(message, candidates) {
        if seconds_between(message.created_at, now()) < 1 { [\"second\", \"first\"] } else { candidates }
    }";
    gateway.post("/v1/scripts/fickle/versions", &json!({"source": source})).await.expect(201);
    gateway.post("/v1/scripts/fickle/activate", &json!({"version": 1})).await.expect(200);
    only_the_second_is_asked(gateway, sink).await;
}

/// If an unknown outcome is to be held, it is also held after the loss of a worker.
#[tokio::test]
async fn killed_after_a_2xx_it_is_held_where_the_route_says_so() {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "on_unknown": "hold"})).await;
    gateway.arm("outcome.before_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
    assert_eq!(gateway.attempts(&id).await, ["hook:unknown"]);
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn killed_after_the_outcome_commit_nothing_is_sent_again_and_the_event_is_in_the_outbox() {
    let (mut gateway, sink) = armed("outcome.after_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    let events = gateway.db.sql("select type from event").await;
    assert_eq!(events.trim(), "message.sent", "outcome and event are one commit");
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    eventually("the end of the lost worker's lease", || async { (count(&gateway, "lease").await == 0).then_some(()) })
        .await;
    assert_eq!(gateway.attempts(&id).await, ["hook:accepted"]);
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn an_outcome_that_could_not_be_written_is_written_again_and_not_sent_again() {
    for failpoint in ["outcome.before_commit=error", "outcome.after_commit=error"] {
        let (gateway, sink) = armed(failpoint).await;
        let id = gateway.send(&hook()).await;
        assert_eq!(gateway.settled(&id).await.state, "sent", "{failpoint}");
        assert_eq!(gateway.attempts(&id).await, ["hook:accepted"], "{failpoint}");
        assert_eq!((sink.received().len(), count(&gateway, "event").await), (1, 1), "{failpoint}");
    }
}

#[tokio::test]
async fn an_intent_whose_commit_was_not_answered_is_asked_after() {
    let (gateway, sink) = armed_for_the_second("hold", "intent.after_commit=error@2").await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["first:rejected_transient", "second:accepted"]);
    assert_eq!(sink.received_at("/second").len(), 1);
}

/// A worker is lost with the delivery; the one that takes it over dies in doing so, and a third finishes.
async fn killed_in_recovery(failpoint: &str) {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    gateway.arm("claim.after_commit=abort").await;
    let id = gateway.send(&due_soon()).await;
    gateway.died().await;
    // Its first look may be its end, before it is ready.
    let doomed = gateway.spawned_node_with(vec![("ANGARIUM_FAILPOINTS", failpoint.to_owned())]);
    gateway.nodes[0] = Some(doomed);
    gateway.died().await;
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:accepted"], "one loss is recorded once");
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn killed_before_the_recovery_commit_another_recovers() {
    killed_in_recovery("recovery.before_commit=abort").await;
}

#[tokio::test]
async fn killed_after_the_recovery_commit_the_queue_has_it() {
    killed_in_recovery("recovery.after_commit=abort").await;
}

/// Starts a gateway that loses its connection within this writer's COMMIT.
async fn losing(loss: Loss, writer: Writer) -> (TestGateway, Proxy, Sink) {
    let (gateway, proxy) = TestGateway::behind_a_proxy(CONFIG).await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    // Both writers have a connection now, and have prepared their statements.
    gateway.settled(&gateway.send(&hook()).await).await;
    proxy.lose(loss, writer);
    (gateway, proxy, sink)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_during_the_accept_commit_is_asked_after_before_the_answer() {
    for loss in [Loss::OfTheCommit, Loss::OfTheAnswer] {
        let (gateway, proxy, sink) = losing(loss, Writer::Admission).await;
        // There are several writers: in the end it is the turn of one that has committed before.
        let (mut accepted, mut refused) = (1, 0);
        for number in 0..50 {
            let key = format!("order-{number}");
            let answer = gateway.post_with("/v1/messages", &[("idempotency-key", &key)], &hook()).await;
            match answer.status.as_u16() {
                202 => accepted += 1,
                503 => refused += 1,
                _ => panic!("{answer:?}"),
            }
            if proxy.has_lost() {
                break;
            }
        }
        assert!(proxy.has_lost());
        assert_eq!(refused, usize::from(loss == Loss::OfTheCommit), "{loss:?}");
        assert_eq!(count(&gateway, "message").await, accepted, "{loss:?}: what was answered is what is there");
        eventually("the end of all", || async {
            (gateway.db.sql("select count(*) from delivery where state = 'sent'").await.trim() == accepted.to_string())
                .then_some(())
        })
        .await;
        assert_eq!(sink.received().len(), accepted, "{loss:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_during_the_outcome_commit_is_asked_after_and_nothing_is_sent_twice() {
    for loss in [Loss::OfTheCommit, Loss::OfTheAnswer] {
        let (gateway, proxy, sink) = losing(loss, Writer::Ledger).await;
        let mut sent = 1;
        while !proxy.has_lost() {
            let id = gateway.send(&hook()).await;
            sent += 1;
            assert_eq!(gateway.settled(&id).await.state, "sent", "{loss:?}");
            assert_eq!(gateway.attempts(&id).await, ["hook:accepted"], "{loss:?}");
        }
        assert_eq!((sink.received().len(), count(&gateway, "event").await), (sent, sent), "{loss:?}");
    }
}

/// A database that refuses one row is no reason to lose it: the lease runs out, and recovery says `unknown`.
#[tokio::test]
async fn what_the_database_refuses_is_found_by_its_lease() {
    for (table, refused) in [("attempt", "new.status = 418"), ("intent", "new.on_unknown = 'retry'")] {
        let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
        sink.answers("/first", [Reply::status(418)]);
        sink.answers("/second", [Reply::status(200).after(std::time::Duration::from_millis(300))]);
        for (uid, path) in [("first", "/first"), ("second", "/second")] {
            gateway.connection(uid, "webhook", json!({"url": sink.url(path)}), json!({})).await;
        }
        let candidates = json!([{"connection": "first"}, {"connection": "second"}]);
        gateway.route("webhook", json!({"candidates": candidates})).await;
        let trigger = format!(
            "create function refuse() returns trigger language plpgsql as
               $$ begin if {refused} then raise exception 'refused'; end if; return new; end $$;
             create trigger refuse before insert on {table} for each row execute function refuse()"
        );
        gateway.db.sql(&trigger).await;
        // Both under one lease; the second is settled after the first was refused.
        let other = json!({"channel": "webhook", "connection": "second", "content": {"payload": {}}});
        let batch = json!({"messages": [hook(), other]});
        let answers = gateway.post("/v1/messages/batch", &batch).await.expect(200);
        let id = |number: usize| answers["data"][number]["message"]["id"].as_str().unwrap().to_owned();
        gateway.logged(0, "the database refuses an outcome").await;
        assert_eq!(gateway.settled(&id(1)).await.state, "sent", "{table}");
        sink.answers("/first", [Reply::status(200)]);
        gateway.db.sql(&format!("drop trigger refuse on {table}")).await;
        assert_eq!(gateway.settled(&id(0)).await.state, "sent", "{table}");
        let attempts = gateway.attempts(&id(0)).await;
        assert!(attempts.iter().any(|it| it.ends_with(":unknown")), "{table}: {attempts:?}");
    }
}
