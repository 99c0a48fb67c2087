//! Gateways that are killed while they work: nothing accepted is lost, nothing ends twice, and what
//! may have been handed off twice says so.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
const NODES: usize = 3;

/// How often a node is killed: 50, or as `ANGARIUM_TEST_KILLS` says.
fn kills() -> usize {
    std::env::var("ANGARIUM_TEST_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(50)
}

/// Sends messages to any living node until it is told to stop; a message that was not answered is
/// sent again with the same key, as a careful client does.
struct Load {
    addresses: Arc<Mutex<Vec<std::net::SocketAddr>>>,
    accepted: Arc<Mutex<HashMap<String, String>>>,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicUsize>,
    key: String,
}

impl Load {
    async fn run(self) {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let key = format!("order-{number}");
            let id = self.send(&client, &key).await;
            self.accepted.lock().unwrap().insert(id, key);
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }

    async fn send(&self, client: &reqwest::Client, key: &str) -> String {
        let body = json!({"channel": "webhook", "content": {"payload": {"key": key}}});
        loop {
            let address = {
                let addresses = self.addresses.lock().unwrap();
                addresses[fastrand::usize(0..addresses.len())]
            };
            let request = client.post(format!("http://{address}/v1/messages")).bearer_auth(&self.key);
            if let Ok(answer) = request.header("idempotency-key", key).json(&body).send().await {
                let status = answer.status();
                match answer.json::<Value>().await {
                    Ok(body) if status == 202 => return body["id"].as_str().unwrap().to_owned(),
                    Ok(body) => assert!(status == 503 || status == 409, "{status}: {body}"),
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The second candidate was asked when its worker died: the first, back by then, must not send too.
#[tokio::test]
async fn what_a_lost_worker_asked_is_asked_of_nobody_else() {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    sink.answers("/first", [Reply::status(503), Reply::status(200)]);
    sink.answers("/second", [Reply::status(200).after(Duration::from_secs(60)), Reply::status(200)]);
    gateway.connection("first", "webhook", json!({"url": sink.url("/first")}), json!({})).await;
    gateway.connection("second", "webhook", json!({"url": sink.url("/second")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "first"}, {"connection": "second"}]})).await;
    let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": {}}})).await;
    sink.arrived(2).await;
    gateway.kill(0);
    let node = gateway.new_node().await;
    gateway.nodes[0] = Some(node);
    assert_eq!(gateway.settled(&id).await["state"], "sent");
    let attempts = gateway.attempts(&id).await;
    assert_eq!(attempts, ["first:rejected_transient", "second:unknown", "second:accepted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_gateways_lose_nothing_and_label_every_duplicate() {
    let (mut gateway, sink) = (TestGateway::with(NODES, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let addresses = Arc::new(Mutex::new(gateway.nodes.iter().flatten().map(|node| node.address()).collect::<Vec<_>>()));
    let accepted = Arc::new(Mutex::new(HashMap::new()));
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let loads: Vec<_> = (0..4)
        .map(|_| {
            let load = Load {
                addresses: Arc::clone(&addresses),
                accepted: Arc::clone(&accepted),
                stop: Arc::clone(&stop),
                next: Arc::clone(&next),
                key: gateway.key.clone(),
            };
            tokio::spawn(load.run())
        })
        .collect();

    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
        let victim = fastrand::usize(0..NODES);
        let address = gateway.nodes[victim].as_ref().unwrap().address();
        gateway.kill(victim);
        addresses.lock().unwrap().retain(|it| *it != address);
        let node = gateway.new_node().await;
        addresses.lock().unwrap().push(node.address());
        gateway.nodes[victim] = Some(node);
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }

    let accepted = accepted.lock().unwrap().clone();
    assert!(accepted.len() > kills(), "the load was real: {} messages", accepted.len());
    let open = "select count(*) from message m left join delivery d on d.tenant_id = m.tenant_id and d.id = m.id
                where d.state is null or d.state = 'queued'";
    eventually("the end of every delivery", || async { (gateway.db.sql(open).await.trim() == "0").then_some(()) })
        .await;
    check(&gateway, &sink, &accepted).await;
}

async fn check(gateway: &TestGateway, sink: &Sink, accepted: &HashMap<String, String>) {
    let stored = gateway.db.sql("select count(*) from message").await;
    let stored: usize = stored.trim().parse().unwrap();
    assert!(stored >= accepted.len(), "{} accepted, {stored} stored", accepted.len());
    let rows = gateway
        .db
        .sql(
            "select 'msg_' || replace(m.id::text, '-', ''), d.state,
               (select count(*) from attempt a where a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.disposition = 'unknown'),
               (select count(*) from event e where e.tenant_id = d.tenant_id and e.message_id = m.id
                 and e.type in ('message.sent', 'message.failed', 'message.unknown', 'message.expired'))
             from message m join delivery d on d.tenant_id = m.tenant_id and d.id = m.id",
        )
        .await;
    let mut handed_off: HashMap<String, usize> = HashMap::new();
    for request in sink.received() {
        *handed_off.entry(request.header("webhook-id").replace("dlv_", "msg_")).or_default() += 1;
    }
    let mut ended: HashMap<&str, (&str, usize)> = HashMap::new();
    for row in rows.lines() {
        let parts: Vec<_> = row.split('|').map(str::trim).collect();
        let [id, state, unknowns, ends] = parts[..] else { panic!("{row:?}") };
        assert_eq!(ends, "1", "{id} ended {ends} times");
        ended.insert(id, (state, unknowns.parse().unwrap()));
    }
    for (id, key) in accepted {
        let (state, _) = ended.get(id.as_str()).unwrap_or_else(|| panic!("{key} ({id}) was accepted and is lost"));
        assert!(*state == "sent" || *state == "unknown", "{key} ({id}) ended {state}");
    }
    for (id, times) in handed_off {
        let (state, unknowns) = ended[id.as_str()];
        assert!(times <= 1 + unknowns, "{id} ({state}) was handed off {times} times with {unknowns} unknown attempts");
    }
}
