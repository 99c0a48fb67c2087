//! Leases of tasks that one node at a time does. A lease is a row of `task_lease` with its holder and its end, on the
//! database's clock: a task of a node that died is free once its lease is over.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, Store, Transaction};

/// The length of a lease: longer than one transaction of a task takes.
const LENGTH: Duration = Duration::from_secs(30);
/// Between two tries for a lease that another node has.
const PAUSE: Duration = Duration::from_millis(100);

/// A task that one node at a time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeasedTask {
    /// Makes the ledger's partitions ahead.
    Partitions,
    /// Purges contents and expires messages.
    Retention,
    /// Puts the files of the operators' folder into service.
    OperatorScripts,
}

impl LeasedTask {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Partitions => "partitions",
            Self::Retention => "retention",
            Self::OperatorScripts => "operator_scripts",
        }
    }
}

impl Store {
    /// Begins a transaction of the worker that has a task's lease. It waits while another node has it.
    pub async fn worker_with(&self, task: LeasedTask) -> Result<Transaction<'static>> {
        loop {
            let mut txn = self.worker().await?;
            if task_lease_take(&mut txn, task, self.holder()).await? {
                return Ok(txn);
            }
            txn.rollback().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Takes a task's lease, or prolongs it; false while another holder has it. Until the transaction ends nobody else can
/// take it, so that what the transaction writes is the holder's work.
pub async fn task_lease_take(db: &mut PgConnection, task: LeasedTask, holder: Uuid) -> Result<bool> {
    let taken = sqlx::query(
        "update task_lease set holder = $2, held_until = now() + $3 * interval '1 second'
         where task = (
           select task from task_lease
           where task = $1 and (holder is null or holder = $2 or held_until <= now()) for update skip locked)",
    )
    .bind(task.as_str())
    .bind(holder)
    .bind(LENGTH.as_secs_f64())
    .execute(db)
    .await?;
    Ok(taken.rows_affected() > 0)
}

/// Gives a task's lease back, if this holder still has it.
pub async fn task_lease_return(db: &mut PgConnection, task: LeasedTask, holder: Uuid) -> Result<()> {
    sqlx::query("update task_lease set holder = null, held_until = null where task = $1 and holder = $2")
        .bind(task.as_str())
        .bind(holder)
        .execute(db)
        .await?;
    Ok(())
}
