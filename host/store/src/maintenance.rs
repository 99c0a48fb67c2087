//! Partitions, and the leftovers of nodes.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Result, Store,
    task_lease::{LeasedTask, task_lease_return},
};

impl Store {
    /// Makes the weekly partitions of the next three weeks.
    pub async fn partitions_ensure(&self) -> Result<()> {
        let mut txn = self.worker_with(LeasedTask::Partitions).await?;
        sqlx::query("select angarium_partitions_ensure(now(), now() + interval '21 days')").execute(&mut *txn).await?;
        task_lease_return(&mut txn, LeasedTask::Partitions, self.holder()).await?;
        txn.commit().await?;
        Ok(())
    }
}

/// Ends a node's leases now, so that others need not wait for them.
pub async fn lease_expire_node(db: &mut PgConnection, node: Uuid) -> Result<u64> {
    let done = sqlx::query("update lease set expires_at = now() - interval '1 millisecond' where node = $1")
        .bind(node)
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}
