//! The database's disk is full.

use std::time::{Duration, Instant};

use serde_json::json;
use xtask::database::Options;

use crate::support::{
    audit::audit,
    database::{Database, eventually},
    gateway::TestGateway,
    load::{Load, Refusal},
    sink::{Reply, Sink},
    small_disk::SmallDisk,
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 1000\n[queue]\nlease_ms = 3000\npoll_ms = 50\n";

/// Little is kept, so that a small disk does.
const SETTINGS: &[(&str, &str)] = &[("min_wal_size", "32MB"), ("max_wal_size", "48MB"), ("shared_buffers", "16MB")];

/// How many messages become due while the disk is full.
const LATER: usize = 10;

struct Scenario {
    gateway: TestGateway,
    sink: Sink,
    load: Load,
    // The disk outlives the server on it.
    disk: SmallDisk,
}

impl Scenario {
    /// A gateway under load on a disk that is then filled, until a client is refused.
    async fn full() -> Option<Self> {
        let disk = SmallDisk::new(192)?;
        let options = Options::alone(&disk.folder().join("data"));
        let options = SETTINGS.iter().fold(options, |options, (name, value)| options.setting(name, value));
        let db = Database::alone(options).await;
        let url = db.url.clone();
        let gateway = TestGateway::on(db, &url, 1, CONFIG).await;
        let sink = Sink::start().await;
        gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
        gateway.without_breaker("hook").await;
        gateway.connection("later", "webhook", json!({"url": sink.url("/later")}), json!({})).await;
        let retry = json!({"type": "linear", "delay_ms": 50, "max_attempts": 100});
        gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
        let patience = Reply::status(503).header("retry-after", "4");
        sink.answers("/later", std::iter::repeat_n(patience, LATER).chain([Reply::status(200)]));
        for _ in 0..LATER {
            gateway.send(&json!({"channel": "webhook", "connection": "later", "content": {"payload": {}}})).await;
        }
        let load = Load::start(&gateway, 4);
        eventually("some load", || async { (load.accepted() > 50).then_some(()) }).await;
        // From here on every outcome asks for more room.
        sink.answers("/in", [Reply::status(500)]);
        let scenario = Self { gateway, sink, load, disk };
        eventually("the refusal of a full disk", || async {
            scenario.disk.fill();
            scenario.refusal("disk_full").map(drop)
        })
        .await;
        Some(scenario)
    }

    fn refusal(&self, code: &str) -> Option<Refusal> {
        self.load.refusals().into_iter().find(|it| it.code == code)
    }

    /// Waits until this number of messages is accepted; on failure shows the clients' other answers.
    async fn serves_beyond(&self, accepted: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.load.accepted() <= accepted {
            let told = self.load.refusals();
            let last = &told[told.len().saturating_sub(3)..];
            assert!(
                Instant::now() < deadline,
                "{} accepted of {accepted}; {} refused: {last:#?}",
                self.load.accepted(),
                told.len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes room, and waits until clients are served again; then all that was accepted has to end, once.
    async fn resume(self) {
        self.disk.free();
        self.gateway.db.start_server().await;
        self.sink.answers("/in", [Reply::status(200)]);
        let before = self.load.accepted();
        self.serves_beyond(before + 20).await;
        let refused = self.load.refusals();
        assert!(refused.iter().all(|it| it.status != 503 || it.retry_after.is_some()), "{refused:?}");
        let accepted = self.load.stop().await;
        audit(&self.gateway, &self.sink, &accepted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_is_a_503_pauses_sends_and_passes_by_itself() {
    let Some(scenario) = Scenario::full().await else { return };
    let refusal = scenario.refusal("disk_full").unwrap();
    assert_eq!((refusal.status, refusal.retry_after.as_deref()), (503, Some("5")), "{refusal:?}");
    assert!(refusal.detail.contains("disk is full"), "{refusal:?}");

    scenario.gateway.logged(0, "outcomes wait for the database").await;
    // A delivery that is due while no outcome can be written is not sent.
    let due = "select count(*) from delivery where state = 'queued' and connection_id = \
               (select id from connection where uid = 'later') and next_attempt_at < now() - interval '1 second'";
    eventually("the time of the later ones", || async {
        scenario.disk.fill();
        (scenario.gateway.db.sql(due).await.trim() == LATER.to_string()).then_some(())
    })
    .await;
    assert_eq!(scenario.sink.received_at("/later").len(), LATER, "nothing is sent without a writable ledger");
    scenario.resume().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_in_the_write_ahead_log_ends_postgres_and_not_the_gateway() {
    let Some(scenario) = Scenario::full().await else { return };
    // After its panic the server tries to recover, and finds no room for that either.
    eventually("the server's end", || async {
        scenario.disk.fill();
        let next_segment = "select pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()";
        let refused = scenario.gateway.db.try_sql(next_segment).await.is_err();
        (refused && scenario.gateway.db.cluster.has_ended().unwrap()).then_some(())
    })
    .await;
    eventually("the refusal of a lost database", || async { scenario.refusal("unavailable") }).await;
    scenario.resume().await;
}
