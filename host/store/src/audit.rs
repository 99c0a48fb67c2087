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
    audit::{Action, Actor},
    ids::{AuditId, TenantId},
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
    /// Returns an entry about an action on this subject.
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

    /// Records the members of two objects that differ.
    #[must_use]
    pub fn difference(self, before: Value, after: Value) -> Self {
        let (Value::Object(mut before), Value::Object(mut after)) = (before, after) else { return self };
        let same: Vec<_> =
            before.iter().filter(|(name, was)| after.get(*name) == Some(*was)).map(|it| it.0.clone()).collect();
        for name in same {
            before.remove(&name);
            after.remove(&name);
        }
        self.before(Value::Object(before)).after(Value::Object(after))
    }

    #[must_use]
    pub fn because(mut self, reason: Option<&str>) -> Self {
        self.reason = reason.map(str::to_owned);
        self
    }
}

/// Records an action on what belongs to a tenant, in the transaction that does it.
pub async fn audit_insert(db: &mut PgConnection, tenant: TenantId, actor: &Actor, entry: &AuditEntry) -> Result<()> {
    let statement = sqlx::query(
        "insert into audit (id, actor_kind, actor_id, actor, action, subject, before, after, reason, request_id, tenant_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    );
    bind_entry(statement, actor, entry).bind(tenant.uuid()).execute(db).await?;
    Ok(())
}

/// Records an action on what belongs to no tenant, in the transaction that does it.
pub async fn operator_audit_insert(db: &mut PgConnection, actor: &Actor, entry: &AuditEntry) -> Result<()> {
    let statement = sqlx::query(
        "insert into operator_audit (id, actor_kind, actor_id, actor, action, subject, before, after, reason, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    );
    bind_entry(statement, actor, entry).execute(db).await?;
    Ok(())
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds what both audits record of an action.
fn bind_entry<'q>(statement: Statement<'q>, actor: &'q Actor, entry: &'q AuditEntry) -> Statement<'q> {
    statement
        .bind(AuditId::new().uuid())
        .bind(actor.kind.as_str())
        .bind(actor.id.as_deref())
        .bind(&actor.name)
        .bind(entry.action.as_str())
        .bind(&entry.subject)
        .bind(entry.before.as_ref().map(Value::to_string))
        .bind(entry.after.as_ref().map(Value::to_string))
        .bind(entry.reason.as_deref())
        .bind(actor.request.as_deref())
}

/// A record as the API shows it.
#[derive(Debug, Clone)]
pub struct AuditView {
    pub id: AuditId,
    pub at: Timestamp,
    /// One of `ActorKind`, or a kind of a later version.
    pub actor_kind: String,
    /// The id of the key, user or job.
    pub actor_id: Option<String>,
    /// The actor's name then.
    pub actor_name: String,
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
            actor_kind: row.try_get("actor_kind")?,
            actor_id: row.try_get("actor_id")?,
            actor_name: row.try_get("actor")?,
            request: row.try_get("request_id")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            before: json(row.try_get("before")?),
            after: json(row.try_get("after")?),
            reason: row.try_get("reason")?,
        })
    }
}

/// The filter of entries.
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
