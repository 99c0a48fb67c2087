//! The wall clock of a node jumps: leases are on the database's time and deadlines on a monotonic clock, so nothing
//! is stolen and no wait is cut short.

use std::{path::PathBuf, time::Duration};

use serde_json::json;

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 2000\n[queue]\nlease_ms = 6000\npoll_ms = 50\n";
const COUNT: usize = 20;

/// Debian's `libfaketime`; `cargo xtask test` installs it.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let found = folders.map(|it| it.path().join("faketime/libfaketimeMT.so.1")).find(|it| it.exists());
    if found.is_none() {
        eprintln!("NOT RUN: there is no libfaketime; Debian's package is `faketime`");
    }
    found
}

/// A wall clock that can be set.
struct WallClock(tempfile::TempDir);

impl WallClock {
    fn new() -> Self {
        let clock = Self(tempfile::tempdir().unwrap());
        clock.jump("+0");
        clock
    }

    /// Relative to the right time: `-2h`.
    fn jump(&self, offset: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("offset")
    }

    fn environment(&self, library: PathBuf) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.display().to_string();
        vec![
            ("LD_PRELOAD", text(library)),
            ("FAKETIME_TIMESTAMP_FILE", text(self.file())),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

async fn sent(gateway: &TestGateway) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..COUNT {
        ids.push(gateway.send(&hook()).await);
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_steals_no_lease_and_floods_with_no_retries() {
    let Some(library) = library() else { return };
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    gateway.without_breaker("hook").await;
    let retry = json!({"type": "linear", "delay_ms": 3_600_000, "max_attempts": 5});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    let clock = WallClock::new();
    let jumping = gateway.new_node_with(clock.environment(library)).await;
    // The other node's clock is right: it would take over what looked abandoned.
    gateway.nodes.insert(0, Some(jumping));
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(700))]);
    for (jumps, offset) in ["+3h", "-3h", "+0"].into_iter().enumerate() {
        let ids = sent(&gateway).await;
        sink.arrived((jumps + 1) * COUNT).await;
        clock.jump(offset);
        for id in ids {
            assert_eq!(gateway.settled(&id).await.state, "sent");
            assert_eq!(gateway.attempts(&id).await, ["hook:accepted"], "{offset}");
        }
    }
    // A wait of an hour is an hour, whatever the clock of its first node says.
    for offset in ["+3h", "-3h"] {
        clock.jump(offset);
        sink.answers("/in", [Reply::status(503)]);
        let before = sink.received().len();
        sent(&gateway).await;
        let waiting =
            "select count(*) from queue where due_at between now() + interval '50 min' and now() + interval '61 min'";
        let all = "select count(*) from queue";
        eventually("the wait of all", || async {
            (gateway.db.sql(all).await.trim() == COUNT.to_string()).then_some(())
        })
        .await;
        assert_eq!(gateway.db.sql(waiting).await.trim(), COUNT.to_string(), "{offset}");
        assert_eq!(sink.received().len(), before + COUNT, "{offset}: each was tried once");
        gateway.db.sql("delete from queue").await;
    }
    assert_eq!(gateway.db.sql("select count(*) from attempt where code = 'worker_lost'").await.trim(), "0");
}
