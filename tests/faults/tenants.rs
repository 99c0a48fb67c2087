//! One tenant's backlog and another's ten messages.

use serde_json::{Value, json};

use crate::support::{
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

/// Room for few, so that the backlog is a long one.
const CONFIG: &str = "[dispatch]\nmax_in_flight = 64\n[queue]\npoll_ms = 20\n";
const BACKLOG: usize = 2_000;
const FEW: usize = 10;

fn batch(count: usize, send_at: Option<jiff::Timestamp>) -> Value {
    let mut message = json!({"channel": "webhook", "content": {"payload": {}}});
    if let Some(at) = send_at {
        message["send_at"] = json!(at.to_string());
    }
    json!({"messages": vec![message; count]})
}

/// How many requests came before the last of the few.
fn came_before(sink: &Sink) -> usize {
    let received = sink.received();
    received.iter().rposition(|it| it.path == "/few").unwrap()
}

/// What is unloaded is taken as one look at the queue: the few go out with the next claim, however long the backlog
/// is. The benchmark has the times; here it is an order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_one_tenant_does_not_delay_ten_messages_of_another() {
    for queued in [false, true] {
        let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
        sink.answers("/many", [Reply::status(200).after(std::time::Duration::from_millis(10))]);
        let at = angarium::clock::now() + jiff::SignedDuration::from_secs(3);
        gateway.webhook(&sink, "/many").await;
        for _ in 0..BACKLOG / 1_000 {
            gateway.post("/v1/messages/batch", &batch(1_000, Some(at))).await.expect(200);
        }
        let other = gateway.key_of("two", ALL_SCOPES);
        let many = std::mem::replace(&mut gateway.key, other);
        gateway.webhook(&sink, "/few").await;
        if queued {
            // Due when the backlog is.
            gateway.post("/v1/messages/batch", &batch(FEW, Some(at))).await.expect(200);
        } else {
            sink.arrived(100).await;
            gateway.post("/v1/messages/batch", &batch(FEW, None)).await.expect(200);
        }
        sink.arrived(BACKLOG + FEW).await;
        let before = came_before(&sink);
        assert!(before < BACKLOG / 2, "queued {queued}: {before} of {BACKLOG} came before the last of {FEW}");
        gateway.key = many;
    }
}
