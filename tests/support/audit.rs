//! Checks the promise on the ledger and on the receivers' requests: no accepted message is lost, none ends twice, and
//! possible duplicates are labelled.

use std::collections::HashMap;

use super::{database::eventually, gateway::TestGateway, sink::Sink};

/// Waits until every delivery has ended, and checks it all. `accepted` has the clients' keys by the messages' ids.
pub async fn audit(gateway: &TestGateway, sink: &Sink, accepted: &HashMap<String, String>) {
    let open = "select count(*) from message m left join delivery d on d.tenant_id = m.tenant_id and d.id = m.id
                where d.state is null or d.state = 'queued'";
    eventually("the end of every delivery", || async { (gateway.db.sql(open).await.trim() == "0").then_some(()) })
        .await;
    let rows = gateway
        .db
        .sql(
            "select 'msg_' || replace(m.id::text, '-', ''), d.state,
               (select count(*) from attempt a where a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.disposition = 'unknown'),
               (select count(*) from attempt a where a.tenant_id = d.tenant_id and a.delivery_id = d.id
                 and a.disposition not in ('unknown', 'not_sent')),
               (select count(*) from event e where e.tenant_id = d.tenant_id and e.message_id = m.id
                 and e.type in ('message.sent', 'message.failed', 'message.unknown', 'message.expired'))
             from message m join delivery d on d.tenant_id = m.tenant_id and d.id = m.id",
        )
        .await;
    let mut ended: HashMap<&str, (&str, usize, usize)> = HashMap::new();
    for row in rows.lines() {
        let parts: Vec<_> = row.split('|').map(str::trim).collect();
        let [id, state, unknown, answered, ends] = parts[..] else { panic!("{row:?}") };
        assert_eq!(ends, "1", "{id} ended {ends} times");
        ended.insert(id, (state, unknown.parse().unwrap(), answered.parse().unwrap()));
    }
    for (id, key) in accepted {
        let (state, ..) = ended.get(id.as_str()).unwrap_or_else(|| panic!("{key} ({id}) was accepted and is lost"));
        assert!(*state == "sent" || *state == "unknown", "{key} ({id}) ended {state}");
    }
    for (id, times) in handed_off(sink) {
        let (state, unknown, answered) = ended[id.as_str()];
        assert!(
            times <= answered + unknown,
            "{id} ({state}) was handed off {times} times, with {answered} answers and {unknown} unknown attempts"
        );
    }
}

/// How often each message came.
fn handed_off(sink: &Sink) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for request in sink.received() {
        *times.entry(request.header("webhook-id").replace("dlv_", "msg_")).or_default() += 1;
    }
    times
}
