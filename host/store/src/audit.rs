//! The audit: entries that are added in the transaction of their change, and never changed. A tenant's entries are its
//! own; changes of providers, which serve all tenants, are in the operators' audit.

use jiff::Timestamp;
use serde_json::{Value, value::RawValue};
use sqlx::{
    PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{
    Result, StoreError,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    audit::{Action, Actor, OperatorActor},
    ids::{AuditId, KeyId, TenantId},
};

/// An audit entry beside its actor and time.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    pub action: Action,
    /// The id of the changed thing.
    pub subject: String,
    /// The previous and the new value, as far as they differ. They must not contain secrets.
    pub before: Option<Value>,
    pub after: Option<Value>,
    pub reason: Option<String>,
}

impl AuditEntry {
    /// Something was done to this.
    pub fn new(action: Action, subject: impl ToString) -> Self {
        Self { action, subject: subject.to_string(), before: None, after: None, reason: None }
    }

    #[must_use]
    pub fn before(mut self, before: Value) -> Self {
        self.before = Some(before);
        self
    }

    #[must_use]
    pub fn after(mut self, after: Value) -> Self {
        self.after = Some(after);
        self
    }

    #[must_use]
    pub fn because(mut self, reason: Option<&str>) -> Self {
        self.reason = reason.map(str::to_owned);
        self
    }
}

/// Records a deed in the transaction that does it.
pub async fn audit_insert(db: &mut PgConnection, tenant: TenantId, actor: &Actor, entry: &AuditEntry) -> Result<()> {
    let statement = sqlx::query(
        "insert into audit (tenant_id, id, key_id, actor, action, subject, before, after, reason, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(tenant.uuid())
    .bind(AuditId::new().uuid())
    .bind(actor.key.uuid())
    .bind(&actor.name);
    bind_deed(statement, entry).bind(actor.request.as_deref()).execute(db).await?;
    Ok(())
}

/// Records a change by an operator, or by the gateway itself, of something that belongs to no tenant.
pub async fn operator_audit_insert(db: &mut PgConnection, by: &OperatorActor, entry: &AuditEntry) -> Result<()> {
    let statement = sqlx::query(
        "insert into operator_audit (id, key_id, actor, action, subject, before, after, reason, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(AuditId::new().uuid())
    .bind(by.key.map(KeyId::uuid))
    .bind(&by.name);
    bind_deed(statement, entry).bind(by.request.as_deref()).execute(db).await?;
    Ok(())
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds what both audits record of a deed.
fn bind_deed<'q>(statement: Statement<'q>, entry: &'q AuditEntry) -> Statement<'q> {
    statement
        .bind(entry.action.as_str())
        .bind(&entry.subject)
        .bind(entry.before.as_ref().map(Value::to_string))
        .bind(entry.after.as_ref().map(Value::to_string))
        .bind(entry.reason.as_deref())
}

/// A record as the API shows it.
#[derive(Debug, Clone)]
pub struct AuditView {
    pub id: AuditId,
    pub at: Timestamp,
    /// `None` where the gateway did it by itself.
    pub key: Option<KeyId>,
    pub actor: String,
    pub request: Option<String>,
    /// One of [`Action`], or the action of a later version.
    pub action: String,
    pub subject: String,
    pub before: Option<Box<RawValue>>,
    pub after: Option<Box<RawValue>>,
    pub reason: Option<String>,
}

impl TryFrom<&PgRow> for AuditView {
    type Error = StoreError;

    fn try_from(row: &PgRow) -> Result<Self> {
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Ok(Self {
            id: row.try_get::<Uuid, _>("id")?.into(),
            at: row.try_get::<jiff_sqlx::Timestamp, _>("at")?.to_jiff(),
            key: row.try_get::<Option<Uuid>, _>("key_id")?.map(KeyId::from),
            actor: row.try_get("actor")?,
            request: row.try_get("request_id")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            before: json(row.try_get("before")?),
            after: json(row.try_get("after")?),
            reason: row.try_get("reason")?,
        })
    }
}

/// Which records.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub subject: Option<String>,
    pub action: Option<Action>,
}

/// The tenant's records, the newest first, from before `before`.
pub async fn audit_list(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &AuditFilter,
    before: Option<AuditId>,
    limit: u32,
) -> Result<PageRows<AuditView>> {
    let rows = sqlx::query(
        "select * from audit
         where tenant_id = $1 and id < $2 and ($3::text is null or subject = $3)
           and ($4::text is null or action = $4)
         order by id desc limit $5",
    )
    .bind(tenant.uuid())
    .bind(before.map_or(Uuid::max(), AuditId::uuid))
    .bind(filter.subject.as_deref())
    .bind(filter.action.map(Action::as_str))
    .bind(one_more(limit))
    .fetch(db);
    page(rows, limit, |row| AuditView::try_from(row)).await
}

/// The operators' records, the newest first, from before `before`.
pub async fn operator_audit_list(
    db: &mut PgConnection,
    filter: &AuditFilter,
    before: Option<AuditId>,
    limit: u32,
) -> Result<PageRows<AuditView>> {
    let rows = sqlx::query(
        "select * from operator_audit
         where id < $1 and ($2::text is null or subject = $2) and ($3::text is null or action = $3)
         order by id desc limit $4",
    )
    .bind(before.map_or(Uuid::max(), AuditId::uuid))
    .bind(filter.subject.as_deref())
    .bind(filter.action.map(Action::as_str))
    .bind(one_more(limit))
    .fetch(db);
    page(rows, limit, |row| AuditView::try_from(row)).await
}
