//! Follow-ups of ended deliveries: `on_outcome` is asked once, and its messages are sent once, whichever node dies.

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::live;
use crate::support::{
    database::eventually,
    gateway::{TestGateway, client},
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
const AGAIN: &str = "fn on_outcome(delivery) {
    if delivery.state == \"failed\" && delivery.follow_up == 0 {
        #{priority: \"high\", attributes: #{after: delivery.state}, tags: [\"again\"]}
    }
}";

/// Starts a gateway whose only connection fails once, and whose route does not try again.
async fn failing_once() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.connection("a", "webhook", json!({"url": sink.url("/a")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "a"}], "retry": {"type": "none"}})).await;
    sink.answers("/a", [Reply::status(503), Reply::status(200)]);
    (gateway, sink)
}

fn hook() -> Value {
    json!({"channel": "webhook", "content": {"payload": {"n": 1}}, "attributes": {"amount": 7}})
}

async fn count(gateway: &TestGateway, table: &str) -> usize {
    gateway.db.sql(&format!("select count(*) from {table}")).await.trim().parse().unwrap()
}

/// Nothing is left to be followed up.
async fn all_done(gateway: &TestGateway) {
    eventually("every end being done with", || async { (count(gateway, "follow_up").await == 0).then_some(()) }).await;
}

/// The messages that followed the ends of one.
async fn followers(gateway: &TestGateway, id: &str) -> Vec<String> {
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    let told =
        decision["follow_ups"].as_array().unwrap().iter().flat_map(|it| it["scripts"].as_array().unwrap().clone());
    let messages = told.flat_map(|it| it["messages"].as_array().cloned().unwrap_or_default());
    messages.map(|it| it["message"].as_str().unwrap_or_else(|| panic!("{it}")).to_owned()).collect()
}

#[tokio::test]
async fn a_message_follows_one_that_failed_and_both_say_so() {
    let (gateway, sink) = failing_once().await;
    live(&gateway, "again", AGAIN).await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
    let view = gateway.settled(&follower).await;
    assert_eq!((view.state.as_str(), view.priority.as_str()), ("sent", "high"));
    let follows = &view["follows"];
    assert_eq!((&follows["message"], &follows["script"], &follows["depth"]), (&json!(id), &json!("again"), &json!(1)));
    assert_eq!(sink.received_at("/a").len(), 2);
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    let told = &decision["follow_ups"][0];
    assert_eq!((&told["state"], &told["scripts"][0]["tags"]), (&json!("failed"), &json!(["again"])));
    let events = gateway.event_types(&id).await;
    assert!(events.iter().any(|kind| kind == "message.followed_up"), "{events:?}");
    all_done(&gateway).await;
    assert_eq!(count(&gateway, "message").await, 2);
}

#[tokio::test]
async fn a_script_asks_about_what_is_sent_right_after_its_activation() {
    let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/a").await;
    let source = "fn on_outcome(delivery) { if delivery.follow_up == 0 { #{text: \"once more\"} } }";
    for _ in 0..3 {
        live(&gateway, "again", source).await;
        let id = gateway.send(&hook()).await;
        eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
        gateway.call(Method::DELETE, "/v1/scripts/again", None).await.expect(204);
        // It asks about nothing that is sent after its end.
        let id = gateway.send(&hook()).await;
        gateway.settled(&id).await;
        all_done(&gateway).await;
        assert_eq!(followers(&gateway, &id).await, [""; 0]);
    }
}

#[tokio::test]
async fn what_follows_goes_no_deeper_than_three_and_what_cannot_be_sent_says_why() {
    let (gateway, sink) = failing_once().await;
    sink.answers("/a", [Reply::status(503)]);
    live(&gateway, "endless", "fn on_outcome(delivery) { [#{text: \"once more\"}, #{channel: \"carrier_pigeon\"}] }")
        .await;
    let mut id = gateway.send(&hook()).await;
    for depth in 1..=3 {
        gateway.settled(&id).await;
        let told = eventually("what follows", || async {
            let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
            decision["follow_ups"].get(0).cloned()
        })
        .await;
        let messages = &told["scripts"][0]["messages"];
        assert!(
            messages[1]["refused"]
                .as_str()
                .unwrap()
                .contains("must be a channel with an active route (got `carrier_pigeon`)"),
            "{told}"
        );
        id = messages[0]["message"].as_str().unwrap().to_owned();
        assert_eq!(gateway.message(&id).await["follows"]["depth"], depth);
    }
    gateway.settled(&id).await;
    all_done(&gateway).await;
    assert_eq!(count(&gateway, "message").await, 4, "the last one's end is nobody's any more");
}

#[tokio::test]
async fn a_receipt_that_ends_a_delivery_is_followed_up_too() {
    let (gateway, sink) = failing_once().await;
    let seed = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let secrets = json!({"token": "t0ken", "public_key": STANDARD.encode(seed.public_key())});
    gateway.connection("texts", "fixture", json!({"url": sink.url("/texts")}), secrets).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}]})).await;
    let source = "fn on_outcome(delivery) { if delivery.state == \"bounced\" { #{channel: \"webhook\", to: \"\" + global::URL} } }";
    live(&gateway, "elsewhere", &format!("const URL = \"{}\";\n{source}", sink.url("/b"))).await;
    let id = gateway.send(&json!({"channel": "sms", "to": "+46700000001", "content": {"text": "hello"}})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let url = gateway.callback_url("texts").await;
    let bounced = json!([{"kind": "bounced", "delivery": id.replace("msg_", "dlv_")}]).to_string();
    let answer = client().post(&url).header("x-token", "t0ken").body(bounced).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
    assert_eq!(gateway.message(&follower).await.channel, "webhook");
}

#[tokio::test]
async fn killed_after_the_settlement_what_follows_is_not_lost() {
    let (mut gateway, sink) = failing_once().await;
    live(&gateway, "again", AGAIN).await;
    gateway.arm("outcome.after_commit=abort").await;
    let id = gateway.send(&hook()).await;
    gateway.died().await;
    assert_eq!((count(&gateway, "follow_up").await, count(&gateway, "message").await), (1, 1));
    gateway.take_over().await;
    let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
    assert_eq!(gateway.settled(&follower).await.state, "sent");
    all_done(&gateway).await;
    assert_eq!((count(&gateway, "message").await, sink.received_at("/a").len()), (2, 2));
}

/// The first acceptance is that of the client's message.
#[tokio::test]
async fn killed_beside_what_follows_it_is_sent_once() {
    let points =
        [("follow_up.after_answer=abort", 1), ("accept.before_commit=abort@2", 1), ("accept.after_commit=abort@2", 0)];
    for (point, left) in points {
        let (mut gateway, sink) = failing_once().await;
        live(&gateway, "again", AGAIN).await;
        gateway.arm(point).await;
        let id = gateway.send(&hook()).await;
        gateway.died().await;
        assert_eq!((count(&gateway, "follow_up").await, count(&gateway, "message").await), (left, 2 - left), "{point}");
        gateway.take_over().await;
        let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
        gateway.settled(&follower).await;
        all_done(&gateway).await;
        assert_eq!((followers(&gateway, &id).await.len(), count(&gateway, "message").await), (1, 2), "{point}");
        let bodies = sink.received_at("/a").len();
        assert!(
            (2..=3).contains(&bodies),
            "{point}: a request of the lost worker's may be labelled and made again: {bodies}"
        );
    }
}

#[tokio::test]
async fn a_follow_up_whose_commit_was_not_answered_is_asked_after() {
    let (mut gateway, sink) = failing_once().await;
    live(&gateway, "again", AGAIN).await;
    gateway.arm("accept.after_commit=error@2").await;
    let id = gateway.send(&hook()).await;
    let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
    assert_eq!(gateway.settled(&follower).await.state, "sent");
    assert_eq!(gateway.attempts(&follower).await, ["a:accepted"], "this node had its lease from the beginning");
    all_done(&gateway).await;
    assert_eq!((followers(&gateway, &id).await.len(), count(&gateway, "message").await), (1, 2));
    assert_eq!(sink.received_at("/a").len(), 2);
}

/// Each node has the scripts' answer in its hand when the first one may go on.
#[tokio::test]
async fn of_nodes_that_handle_the_same_end_one_sends_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let (mut gateway, sink) = failing_once().await;
    live(&gateway, "again", AGAIN).await;
    let held = format!("follow_up.after_answer=pause:{}", go.display());
    gateway.arm(&held).await;
    for _ in 0..2 {
        let node = gateway.new_node_with(vec![("ANGARIUM_FAILPOINTS", held.clone())]).await;
        gateway.nodes.push(Some(node));
    }
    let id = gateway.send(&hook()).await;
    // A node that is held looks no further, so that each look is another node's.
    eventually("the looks of all nodes", || async {
        gateway.db.sql("update follow_up set due_at = now() where tries < 3").await;
        (gateway.db.sql("select tries from follow_up").await.trim() == "3").then_some(())
    })
    .await;
    for node in 0..3 {
        gateway.logged(node, "a failpoint is reached").await;
    }
    std::fs::write(&go, "").unwrap();
    let follower = eventually("what follows", || async { followers(&gateway, &id).await.pop() }).await;
    gateway.settled(&follower).await;
    eventually("two nodes that come too late", || async {
        let logs = gateway.nodes.iter().flatten().map(|node| std::fs::read_to_string(node.log()).unwrap_or_default());
        (logs.filter(|log| log.contains("was followed up already")).count() == 2).then_some(())
    })
    .await;
    assert_eq!((followers(&gateway, &id).await.len(), count(&gateway, "message").await), (1, 2));
    assert_eq!(sink.received_at("/a").len(), 2);
}

#[tokio::test]
async fn tenants_without_such_a_script_pay_nothing() {
    let (gateway, _sink) = failing_once().await;
    live(&gateway, "other", "fn admit(message) { allow() }").await;
    gateway
        .db
        .sql(
            "create table noted (n int); create function note() returns trigger language plpgsql security definer as
        $$ begin insert into public.noted values (1); return null; end $$;
        create trigger noted after insert on follow_up for each row execute function note()",
        )
        .await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    assert_eq!(count(&gateway, "noted").await, 0);
}
