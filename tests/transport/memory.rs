//! A large content leaves memory as it is written, and a long answer waits for memory before it is read.

use std::{sync::Arc, time::Duration};

use angarium_domain::ids::TenantId;
use angarium_transport::byte_budget::ByteBudget;
use tokio::io::AsyncReadExt;

use super::{Reply, Segment, Sender, Transmission, TransportSettings, answering, ok, post, serve, settings};
use crate::support::database::eventually;

const MIB: usize = 1 << 20;

fn sender(bytes: &Arc<ByteBudget>) -> Sender {
    Sender::with(TransportSettings { bytes: Arc::clone(bytes), ..settings() })
}

#[tokio::test]
async fn a_large_request_leaves_memory_when_it_was_written_and_not_when_it_is_answered() {
    let bytes = ByteBudget::new(100 * MIB);
    let address = serve(|mut stream| async move {
        let mut buffer = vec![0; MIB];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let mut request = post(&format!("http://{address}/"), vec![]);
    request.body = vec![Segment::Text("x".repeat(8 * MIB))];
    let permit = bytes.take(TenantId::new(), 64 * MIB).await;
    let sender = sender(&bytes).within(Duration::from_secs(60));
    let sent = sender.send_under(Some(permit), Transmission::Http(Box::new(request)));
    let left = eventually("the request leaving memory", || async { (bytes.taken() == 0).then_some(()) });
    tokio::select! {
        answer = sent => panic!("nobody answers: {answer:?}"),
        () = left => {}
    }
}

#[tokio::test]
async fn a_request_that_nobody_reads_keeps_its_permit_until_it_is_given_up() {
    let bytes = ByteBudget::new(100 * MIB);
    let address = serve(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let mut request = post(&format!("http://{address}/"), vec![]);
    request.body = vec![Segment::Text("x".repeat(16 * MIB))];
    let permit = bytes.take(TenantId::new(), 64 * MIB).await;
    let sender = sender(&bytes).within(Duration::from_secs(2));
    let sent = sender.send_under(Some(permit), Transmission::Http(Box::new(request)));
    let shrunk = eventually("all but the request", || async { (bytes.taken() == 16 * MIB).then_some(()) });
    let (answer, ()) = tokio::join!(sent, shrunk);
    assert!(answer.is_err_and(|fault| fault.may_have_been_sent));
    eventually("the request given up", || async { (bytes.taken() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_long_answer_waits_for_memory_and_a_short_one_does_not() {
    let bytes = ByteBudget::new(MIB);
    let (address, _requests) = answering(|request| {
        let long = request.starts_with("POST /long");
        ok(&"x".repeat(if long { 100_000 } else { 10_000 }))
    })
    .await;
    let all = bytes.take(TenantId::new(), MIB).await;
    let sender = sender(&bytes);
    let url = |path: &str| format!("http://{address}{path}");
    assert!(sender.post(&url("/short"), vec![]).await.is_ok());
    let hurried = sender.within(Duration::from_millis(300));
    let reply = hurried.post(&url("/long"), vec![]).await.unwrap();
    assert!(reply.status() == 200 && reply.cut().is_some(), "as far as there was memory by the deadline: {reply:?}");
    drop(all);
    let reply = hurried.within(Duration::from_secs(10)).post(&url("/long"), vec![]).await.unwrap();
    assert_eq!(bytes.taken(), 100_000, "what was read is held under a permit");
    let Reply::Http { body, .. } = &reply else { panic!("{reply:?}") };
    assert_eq!(body.len(), 100_000);
    drop(reply);
    assert_eq!(bytes.taken(), 0);
}
