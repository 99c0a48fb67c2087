//! Leases of tasks: one holder at a time, and another one once a lease is over.

use angarium_store::task_lease::{LeasedTask, task_lease_return, task_lease_take};
use uuid::Uuid;

use crate::support::database::Database;

const TASK: LeasedTask = LeasedTask::Retention;

async fn takes(db: &Database, holder: Uuid) -> bool {
    let mut txn = db.store.worker().await.unwrap();
    let taken = task_lease_take(&mut txn, TASK, holder).await.unwrap();
    txn.commit().await.unwrap();
    taken
}

#[tokio::test]
async fn a_task_has_one_holder_until_its_lease_is_over_or_returned() {
    let db = Database::new().await;
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    assert!(takes(&db, one).await);
    assert!(!takes(&db, other).await);
    assert!(takes(&db, one).await, "its holder prolongs it");
    let others = db.sql("select count(*) from task_lease where holder is not null").await;
    assert_eq!(others, "1", "other tasks are free");

    // The holder died.
    db.sql("update task_lease set held_until = now() - interval '1 second' where holder is not null").await;
    assert!(takes(&db, other).await);
    assert!(!takes(&db, one).await, "a holder that wakes late has lost it");

    let mut txn = db.store.worker().await.unwrap();
    task_lease_return(&mut txn, TASK, one).await.unwrap();
    txn.commit().await.unwrap();
    assert!(!takes(&db, one).await, "only its holder returns it");
    let mut txn = db.store.worker().await.unwrap();
    task_lease_return(&mut txn, TASK, other).await.unwrap();
    txn.commit().await.unwrap();
    assert!(takes(&db, one).await);
}

#[tokio::test]
async fn nobody_takes_a_task_while_its_holder_writes() {
    let db = Database::new().await;
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let mut writes = db.store.worker().await.unwrap();
    assert!(task_lease_take(&mut writes, TASK, one).await.unwrap());
    assert!(!takes(&db, other).await, "it does not wait either");
    writes.rollback().await.unwrap();
    assert!(takes(&db, other).await, "what was not committed was not taken");
}

#[tokio::test]
async fn a_task_that_another_process_has_is_waited_for() {
    let db = Database::new().await;
    let held = db.store.worker_with(LeasedTask::Partitions).await.unwrap();
    let waiting = tokio::spawn({
        let store = angarium_store::Store::new(&db.url, 2).unwrap();
        async move { store.partitions_ensure().await }
    });
    held.rollback().await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(db.sql("select count(*) from task_lease where holder is not null").await, "0", "it was returned");
}
