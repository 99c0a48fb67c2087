//! The database goes away and comes back: answers are true, nothing is sent meanwhile, and nothing is lost.

use std::time::{Duration, Instant};

use serde_json::json;
use xtask::{database::Options, project};

use crate::support::{
    audit::audit,
    database::{Database, eventually},
    gateway::TestGateway,
    load::Load,
    messages::hook,
    sink::{Reply, Sink},
};

/// The time for a refusal; the gateway's own patience is two seconds.
const PATIENCE: Duration = Duration::from_secs(2);

const CONFIG: &str = "[dispatch]\ndeadline_ms = 1000\nmax_in_flight_per_connection = 2\n[queue]\nlease_ms = 3000\n";

async fn on_its_own_server(config: &str) -> TestGateway {
    let db = Database::alone(Options::tests(project::root())).await;
    let url = db.url.clone();
    TestGateway::on(db, &url, 1, config).await
}

/// How often the log says this.
fn said(gateway: &TestGateway, text: &str) -> usize {
    let log = std::fs::read_to_string(gateway.nodes[0].as_ref().unwrap().log()).unwrap();
    log.matches(text).count()
}

fn waits(gateway: &TestGateway) -> usize {
    said(gateway, "outcomes wait for the database")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_postgres_is_a_503_within_two_seconds_and_passes_by_itself() {
    let (gateway, sink) = (on_its_own_server(CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(20))]);
    let load = Load::start(&gateway, 4);
    eventually("some load", || async { (load.accepted() > 50).then_some(()) }).await;

    gateway.db.stop_server().await;
    // More than three seconds of refusals: then no key is known from before any more.
    eventually("refusals", || async { (load.refusals().len() >= 8 && waits(&gateway) >= 20).then_some(()) }).await;
    let refusals = load.refusals();
    assert!(refusals.iter().all(|it| it.status == 503 && it.retry_after.is_some()), "{refusals:?}");
    let mut took: Vec<_> = refusals.iter().map(|it| it.took).collect();
    took.sort();
    assert!(took[took.len() / 2] <= PATIENCE, "refusals took {took:?}");
    // Deliveries wait in memory for a place at the connection, and are not sent.
    let (sent, waited) = (sink.received().len(), waits(&gateway));
    eventually("a further while", || async { (waits(&gateway) >= waited + 10).then_some(()) }).await;
    assert_eq!(sink.received().len(), sent, "nothing is sent without a writable ledger");

    gateway.db.start_server().await;
    let before = load.accepted();
    eventually("acceptance", || async { (load.accepted() > before + 20).then_some(()) }).await;
    let accepted = load.stop().await;
    audit(&gateway, &sink, &accepted).await;
}

/// A server as a failover leaves it for a while: it answers, and takes no writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_a_503_and_passes_by_itself() {
    let (gateway, sink) = (on_its_own_server("").await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let message = hook();
    gateway.settled(&gateway.send(&message).await).await;

    let read_only = |on: &'static str| async move { format!("alter system set default_transaction_read_only = {on}") };
    gateway.db.sql(&read_only("on").await).await;
    gateway.db.sql("select pg_reload_conf()").await;
    let refused = eventually("a refusal", || async {
        let answer = gateway.post("/v1/messages", &message).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    assert_eq!(gateway.call(reqwest::Method::GET, "/readyz", None).await.status, 503);

    gateway.db.sql("begin; set transaction read write; commit").await;
    gateway.db.sql(&read_only("off").await).await;
    gateway.db.sql("select pg_reload_conf()").await;
    let id = eventually("acceptance", || async {
        let answer = gateway.post("/v1/messages", &message).await;
        (answer.status == 202).then(|| answer.body["id"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_is_a_503_and_comes_back_by_itself() {
    let (gateway, proxy) = TestGateway::behind_a_proxy("").await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    let message = hook();
    gateway.settled(&gateway.send(&message).await).await;

    proxy.cut();
    let asked = Instant::now();
    let refused = gateway.post("/v1/messages", &message).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    assert!(asked.elapsed() < PATIENCE * 2, "the refusal took {:?}", asked.elapsed());
    assert_eq!(refused.body["source"], "gateway");
    eventually("readiness saying no", || async {
        (gateway.call(reqwest::Method::GET, "/readyz", None).await.status == 503).then_some(())
    })
    .await;
    assert_eq!(sink.received().len(), 1);

    proxy.mend();
    let after = eventually("acceptance", || async {
        let answer = gateway.post("/v1/messages", &message).await;
        (answer.status == 202).then(|| answer.body["id"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(gateway.settled(&after).await.state, "sent");
}

/// The outcome of a request before the loss is written once the database is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_waits_for_the_database() {
    let (gateway, proxy) = TestGateway::behind_a_proxy("").await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(500))]);
    let id = gateway.send(&hook()).await;
    sink.arrived(1).await;
    proxy.cut();
    gateway.logged(0, "outcomes wait for the database").await;
    proxy.mend();
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(sink.received().len(), 1, "it was not sent again");
}

/// While the database is away, leases run out by the node's own clock; the node neither sends its deliveries under them
/// nor forgets them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_in_hand_outlives_a_database_that_is_away_longer_than_its_lease() {
    let config = "[dispatch]\ndeadline_ms = 500\nmax_in_flight_per_connection = 1\n[queue]\nlease_ms = 1500\n";
    let (gateway, proxy) = TestGateway::behind_a_proxy(config).await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(200))]);
    let messages: Vec<_> = (0..20).map(|_| hook()).collect();
    gateway.post("/v1/messages/batch", &json!({"messages": messages})).await.expect(200);
    sink.arrived(1).await;
    for _ in 0..3 {
        proxy.cut();
        // Leases are renewed three times in their length, and a try waits two seconds for a connection.
        let not_renewed = || said(&gateway, "leases can't be renewed");
        let before = not_renewed();
        eventually("more than a lease's time", || async { (not_renewed() >= before + 2).then_some(()) }).await;
        proxy.mend();
        let ended = "select count(*) from delivery where state <> 'queued'";
        let before = gateway.db.sql(ended).await;
        eventually("some more", || async {
            let now = gateway.db.sql(ended).await;
            (now != before || now.trim() == "20").then_some(())
        })
        .await;
    }
    audit(&gateway, &sink, &std::collections::HashMap::new()).await;
    assert_eq!(gateway.db.sql("select count(*) from delivery where state = 'sent'").await.trim(), "20");
}
