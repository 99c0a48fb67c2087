//! Steps of jobs: one node moves a job on, whichever others have the same step.

use angarium_domain::ids::{JobId, MessageId};
use angarium_store::{
    job::{Job, JobMove, JobTask, NewJob, job_advance, job_cancel, job_claim, job_get, job_insert},
    message_search::MessageFilter,
};

use crate::support::database::Database;

async fn claimed(db: &Database, seconds: f64) -> Option<Job> {
    let mut txn = db.store.worker().await.unwrap();
    let job = job_claim(&mut txn, seconds).await.unwrap();
    txn.commit().await.unwrap();
    job
}

async fn moves(db: &Database, job: &Job) -> bool {
    let to = MessageId::new().uuid();
    let step = JobMove { tenant: job.tenant, job: job.id, from: job.reached, to, done: 1, skipped: 0 };
    let mut txn = db.store.tenant(job.tenant).await.unwrap();
    let moved = job_advance(&mut txn, &step).await.unwrap();
    txn.commit().await.unwrap();
    moved
}

#[tokio::test]
async fn of_two_nodes_with_the_same_step_of_a_job_one_moves_it() {
    let db = Database::new().await;
    let tenant = db.tenant("a").await;
    let new = NewJob {
        id: JobId::new(),
        task: JobTask::Cancel(MessageFilter::default()),
        rate_per_second: None,
        most: None,
        reason: None,
        matched: 1,
    };
    let mut txn = db.store.tenant(tenant).await.unwrap();
    job_insert(&mut txn, tenant, &new).await.unwrap();
    txn.commit().await.unwrap();

    // The first node freezes, and its time ends at once.
    let frozen = claimed(&db, 0.0).await.unwrap();
    let awake = claimed(&db, 60.0).await.unwrap();
    assert_eq!(claimed(&db, 60.0).await.map(|job| job.id), None, "another node has it");
    assert!(moves(&db, &awake).await);
    assert!(!moves(&db, &frozen).await, "it wakes too late");

    let mut txn = db.store.tenant(tenant).await.unwrap();
    let now = job_get(&mut txn, tenant, new.id).await.unwrap().unwrap();
    assert_eq!(now.done, 1);
    assert!(job_cancel(&mut txn, tenant, new.id).await.unwrap());
    txn.commit().await.unwrap();
    assert!(!moves(&db, &now).await, "a stopped job acts no more");
}
