//! Acceptance, claims, leases and settlements.

use std::{sync::Arc, time::Duration};

use angarium::clock;
use angarium_domain::{
    attempt::{Attempt, Trigger, Verdict},
    delivery::DeliveryState,
    ids::{AttemptId, DeliveryId, MessageId, TenantId},
    legs::Leg,
    message::{Body, Idempotency, Message, NewMessage, Priority},
    provider::Disposition,
    recipients::Recipients,
};
use angarium_store::{
    attempt::{Settlement, attempt_list, attempt_settle},
    message::{BirthLease, MessageRow, message_get, message_insert},
    queue::{NewLease, Share, lease_hold, lease_insert, lease_recover, lease_renew, queue_claim, queue_lanes},
};
use jiff::ToSpan;
use uuid::Uuid;

use crate::support::database::{Database, claim_due};

fn message(priority: Priority, key: Option<&str>) -> NewMessage {
    let leg = Leg::on("webhook".parse().unwrap());
    let message = Message { created_at: clock::now(), priority, ..Message::with(leg, Body::default()) };
    let idempotency = key.map(|key| Idempotency { key: key.to_owned(), fingerprint: [7; 32], former: Vec::new() });
    NewMessage { message, idempotency, attachments: vec![], rule_input: None }
}

async fn accept(db: &Database, tenant: TenantId, new: &[NewMessage], queued: bool) -> Vec<MessageId> {
    let mut txn = db.store.tenant(tenant).await.unwrap();
    let lease = BirthLease { id: Uuid::now_v7(), node: Uuid::now_v7(), length_ms: 60_000 };
    let rows: Vec<_> =
        new.iter().map(|new| MessageRow { new, json: b"{}", excerpt: None, queued: Some(queued) }).collect();
    let fresh = message_insert(&mut txn, tenant, &rows, lease).await.unwrap();
    txn.commit().await.unwrap();
    fresh.fresh
}

async fn claim(db: &Database, most: usize) -> Vec<(TenantId, DeliveryId)> {
    let mut txn = db.store.worker().await.unwrap();
    let claimed = claim_due(&mut txn, most).await;
    txn.commit().await.unwrap();
    claimed
}

/// Returns one delivery that a node took with a lease of this number of milliseconds.
async fn taken(db: &Database, tenant: TenantId, lease_ms: u64) -> (MessageId, Uuid) {
    let new = message(Priority::Normal, None);
    accept(db, tenant, std::slice::from_ref(&new), true).await;
    let mut txn = db.store.worker().await.unwrap();
    let claimed = claim_due(&mut txn, 10).await;
    assert_eq!(claimed, [(tenant, new.message.id.first_delivery())]);
    let lease = NewLease { tenant, id: Uuid::now_v7(), deliveries: vec![(claimed[0].1, 0)] };
    let id = lease.id;
    lease_insert(&mut txn, Uuid::now_v7(), Duration::from_millis(lease_ms), &[lease]).await.unwrap();
    txn.commit().await.unwrap();
    (new.message.id, id)
}

fn settlement(tenant: TenantId, message: MessageId, lease: Uuid, number: u32, state: DeliveryState) -> Settlement {
    let now = clock::now();
    Settlement {
        tenant,
        delivery: message.first_delivery(),
        message,
        channel: "webhook".into(),
        priority: Priority::Normal,
        lease,
        attempt: Attempt {
            id: AttemptId::new(),
            number,
            trigger: Trigger::Scheduled,
            origin: None,
            plan: Arc::from("{}"),
            started_at: now,
            finished_at: now,
            verdict: Verdict {
                disposition: Disposition::Accepted,
                status: Some(200),
                code: "200".into(),
                unified_code: "ok".into(),
                detail: String::new(),
                external_id: None,
                retry_after_ms: None,
                cost: None,
                units: None,
                overridden: None,
            },
            fallback_reason: None,
            plugin_micros: 1,
            plugin_memory: 1,
            recipients: Recipients::default(),
            further: false,
        },
        recipients: Recipients::default(),
        state: Some(state),
        next: (state == DeliveryState::Queued).then_some((now, Trigger::Retry)),
        deaths: 0,
        ordered: false,
    }
}

#[tokio::test]
async fn a_key_is_accepted_once_even_within_one_batch() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let twice = [message(Priority::Normal, Some("k")), message(Priority::Normal, Some("k"))];
    assert_eq!(accept(&db, tenant, &twice, true).await, [twice[0].message.id]);
    assert!(accept(&db, tenant, &twice[1..], true).await.is_empty());
    let other = db.tenant("other").await;
    assert_eq!(accept(&db, other, &twice[1..], true).await.len(), 1, "another tenant's key is another key");
}

#[tokio::test]
async fn a_walk_sees_each_tenants_priorities_and_whether_they_are_due() {
    let db = Database::new().await;
    let mut tenants = [db.tenant("one").await, db.tenant("two").await, db.tenant("three").await];
    tenants.sort_unstable();
    for tenant in tenants {
        let mut later = message(Priority::Urgent, None);
        later.message.send_at = Some(clock::now() + 1.hour());
        let now = (0..5).map(|_| message(Priority::Low, None));
        accept(&db, tenant, &now.chain([later]).collect::<Vec<_>>(), true).await;
    }
    let mut txn = db.store.worker().await.unwrap();
    let lanes = queue_lanes(&mut txn, None, 100).await.unwrap();
    let seen: Vec<_> = lanes.iter().map(|lane| (lane.tenant, lane.priority, lane.due)).collect();
    let each = |tenant| [(tenant, Priority::Urgent, false), (tenant, Priority::Low, true)];
    assert_eq!(seen, tenants.map(each).concat());
    assert_eq!(queue_lanes(&mut txn, Some(tenants[0]), 3).await.unwrap(), lanes[2..5]);
    assert!(queue_lanes(&mut txn, Some(tenants[2]), 3).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_claim_takes_the_share_of_each_and_the_longest_due_first() {
    let db = Database::new().await;
    let (one, other) = (db.tenant("one").await, db.tenant("other").await);
    let many: Vec<_> = (0..20).map(|_| message(Priority::Normal, None)).collect();
    accept(&db, one, &many[10..], true).await;
    accept(&db, one, &many[..10], true).await;
    accept(&db, other, &[message(Priority::Low, None)], true).await;
    let share = |tenant, priority, count| Share { tenant, priority, count };
    let mut txn = db.store.worker().await.unwrap();
    let shares = [share(one, Priority::Normal, 3), share(one, Priority::High, 2), share(other, Priority::Low, 9)];
    let claimed = queue_claim(&mut txn, &shares).await.unwrap();
    let mut of_one: Vec<_> = claimed.iter().filter(|it| it.tenant == one).map(|it| it.delivery).collect();
    of_one.sort_unstable();
    assert_eq!(of_one, many[..3].iter().map(|it| it.message.id.first_delivery()).collect::<Vec<_>>());
    assert_eq!(claimed.iter().filter(|it| it.tenant == other).count(), 1);
    // A second transaction skips rows that another has taken and not committed.
    let mut second = db.store.worker().await.unwrap();
    let claimed = queue_claim(&mut second, &shares).await.unwrap();
    assert!(claimed.iter().all(|it| it.tenant == one && !of_one.contains(&it.delivery)), "{claimed:?}");
    assert_eq!(claimed.len(), 3);
}

#[tokio::test]
async fn what_is_due_later_is_not_claimed() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let mut later = message(Priority::Normal, None);
    later.message.send_at = Some(clock::now() + 1.hour());
    accept(&db, tenant, &[later], true).await;
    assert!(claim(&db, 10).await.is_empty());
}

#[tokio::test]
async fn a_lease_that_ended_is_taken_over_once_and_its_late_outcome_finds_no_hold() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let (message, lease) = taken(&db, tenant, 0).await;
    let mut txn = db.store.worker().await.unwrap();
    let abandoned = lease_recover(&mut txn, 10).await.unwrap();
    assert_eq!(abandoned.len(), 1);
    assert_eq!((abandoned[0].message, abandoned[0].lease), (message, lease));
    txn.commit().await.unwrap();
    let mut txn = db.store.worker().await.unwrap();
    assert!(lease_recover(&mut txn, 10).await.unwrap().is_empty());
    assert!(lease_hold(&mut txn, &[(tenant, lease)]).await.unwrap().leases.is_empty());
    assert!(lease_renew(&mut txn, Duration::from_secs(1), &[(tenant, lease)]).await.unwrap().is_empty());
}

#[tokio::test]
async fn recovery_passes_over_what_has_an_outcome() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let (message, lease) = taken(&db, tenant, 0).await;
    let mut txn = db.store.worker().await.unwrap();
    let settled = settlement(tenant, message, lease, 1, DeliveryState::Sent);
    let _ = attempt_settle(&mut txn, &[&settled]).await.unwrap();
    assert!(lease_recover(&mut txn, 10).await.unwrap().is_empty());
    txn.commit().await.unwrap();
    let mut txn = db.store.tenant(tenant).await.unwrap();
    let view = message_get(&mut txn, tenant, message).await.unwrap().unwrap();
    assert_eq!((view.delivery.state, view.delivery.attempts), (DeliveryState::Sent, 1));
    assert_eq!(attempt_list(&mut txn, tenant, message.first_delivery()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_end_is_never_replaced_and_a_retry_waits_in_the_queue() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let (message, lease) = taken(&db, tenant, 60_000).await;
    let mut txn = db.store.worker().await.unwrap();
    let _ = attempt_settle(&mut txn, &[&settlement(tenant, message, lease, 1, DeliveryState::Queued)]).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(claim(&db, 10).await.len(), 1);
    let mut txn = db.store.worker().await.unwrap();
    let _ = attempt_settle(&mut txn, &[&settlement(tenant, message, lease, 2, DeliveryState::Failed)]).await.unwrap();
    let _ = attempt_settle(&mut txn, &[&settlement(tenant, message, lease, 3, DeliveryState::Sent)]).await.unwrap();
    txn.commit().await.unwrap();
    let mut txn = db.store.tenant(tenant).await.unwrap();
    let view = message_get(&mut txn, tenant, message).await.unwrap().unwrap();
    assert_eq!((view.delivery.state, view.delivery.attempts), (DeliveryState::Failed, 2));
}

#[tokio::test]
async fn a_wait_is_counted_on_the_databases_clock() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    for skew in [(-3).hours(), 3.hours()] {
        let (message, lease) = taken(&db, tenant, 60_000).await;
        let mut settled = settlement(tenant, message, lease, 1, DeliveryState::Queued);
        settled.attempt.finished_at = clock::now() + skew;
        settled.next = Some((settled.attempt.finished_at + 1.hour(), Trigger::Retry));
        let mut txn = db.store.worker().await.unwrap();
        let _ = attempt_settle(&mut txn, &[&settled]).await.unwrap();
        txn.commit().await.unwrap();
        let due =
            "select count(*) from queue q join delivery d on d.id = q.delivery_id and d.next_attempt_at = q.due_at
                   where due_at between now() + interval '59 min' and now() + interval '61 min'";
        assert_eq!(db.sql(due).await.trim(), "1", "{skew}");
        db.sql("delete from queue").await;
    }
}

/// The lease of a node outlives its settled deliveries, as long as it holds something else.
#[tokio::test]
async fn recovery_passes_over_what_was_settled_and_claimed_by_another() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let both = [message(Priority::Normal, None), message(Priority::Normal, None)];
    accept(&db, tenant, &both, false).await;
    let lease = db.sql("select id from lease").await.trim().parse().unwrap();
    let mut txn = db.store.worker().await.unwrap();
    let retried = settlement(tenant, both[0].message.id, lease, 1, DeliveryState::Queued);
    let _ = attempt_settle(&mut txn, &[&retried]).await.unwrap();
    let claimed = claim_due(&mut txn, 10).await;
    assert_eq!(claimed, [(tenant, both[0].message.id.first_delivery())]);
    let other = NewLease { tenant, id: Uuid::now_v7(), deliveries: vec![(claimed[0].1, 1)] };
    let second = other.id;
    lease_insert(&mut txn, Uuid::now_v7(), Duration::from_secs(60), &[other]).await.unwrap();
    let retried = settlement(tenant, both[0].message.id, second, 2, DeliveryState::Queued);
    let _ = attempt_settle(&mut txn, &[&retried]).await.unwrap();
    txn.commit().await.unwrap();

    let expire = |lease: Uuid| format!("update lease set expires_at = now() - interval '1 s' where id = '{lease}'");
    db.sql(&expire(lease)).await;
    let mut txn = db.store.worker().await.unwrap();
    let abandoned = lease_recover(&mut txn, 10).await.unwrap();
    let abandoned: Vec<_> = abandoned.iter().map(|it| it.message).collect();
    assert_eq!(abandoned, [both[1].message.id], "the other one waits for its third attempt");
    txn.commit().await.unwrap();
    db.sql(&expire(second)).await;
    let mut txn = db.store.worker().await.unwrap();
    assert!(lease_recover(&mut txn, 10).await.unwrap().is_empty(), "and nobody has lost it");
}
