//! A tenant's declarative rules, with all versions.

use jiff::Timestamp;
use sqlx::{FromRow, PgConnection};

use super::{
    Result,
    message::corrupt,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    ids::{ExperimentId, RuleId, TenantId},
    rule::RuleSpec,
};

/// A rule with its state.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRule {
    pub id: RuleId,
    pub uid: Option<String>,
    /// Grows with each change.
    pub version: i32,
    pub spec: RuleSpec,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

type Row = (uuid::Uuid, Option<String>, i32, String, jiff_sqlx::Timestamp, jiff_sqlx::Timestamp);

fn stored((id, uid, version, spec, created_at, updated_at): Row) -> Result<StoredRule> {
    let spec = serde_json::from_str(&spec).map_err(corrupt)?;
    let (created_at, updated_at) = (created_at.to_jiff(), updated_at.to_jiff());
    Ok(StoredRule { id: id.into(), uid, version, spec, created_at, updated_at })
}

/// Returns a stamp of a tenant's rules and live scripts, operators' too, that changes with them; `None` if there are
/// none.
pub async fn rulebook_stamp(db: &mut PgConnection, tenant: TenantId) -> Result<Option<String>> {
    let stamp = sqlx::query_scalar(
        "select md5(string_agg(part, ',' order by part)) from (
           select 'rules ' || number as part from rule_set
           where tenant_id = $1 and exists (select from rule where tenant_id = $1)
           union all
           select name || ' ' || version from script where tenant_id = $1 and state = 'live'
           union all
           select 'reset ' || name || ' ' || number from script_reset where tenant_id = $1
           union all
           select kind || ' ' || scope || '/' || name || ' ' || version from operator_script
           where live and scope in ('', (select name from tenant where id = $1))
           union all
           select id || ' ' || coalesce(percentage, 0) from experiment where tenant_id = $1 and ended_at is null
         ) as parts",
    )
    .bind(tenant.uuid())
    .fetch_one(db)
    .await?;
    Ok(stamp)
}

/// The specifications of all rules, as JSON.
pub async fn rule_specs(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<(RuleId, String)>> {
    let rows: Vec<(uuid::Uuid, String)> = sqlx::query_as("select id, spec from rule where tenant_id = $1 order by id")
        .bind(tenant.uuid())
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(|(id, spec)| (id.into(), spec)).collect())
}

/// Returns the number of a tenant's rule set: it grows with each change of a rule, and is 0 before the first.
pub async fn rule_set_number(db: &mut PgConnection, tenant: TenantId) -> Result<i64> {
    let number = sqlx::query_scalar("select number from rule_set where tenant_id = $1").bind(tenant.uuid());
    Ok(number.fetch_optional(db).await?.unwrap_or_default())
}

/// Notes, in the transaction that changes a rule, which version of it is in the tenant's rule set from now on; `None`
/// if it is deleted. The transactions that change a tenant's rules commit one after another.
pub async fn rule_set_change(
    db: &mut PgConnection,
    tenant: TenantId,
    rule: RuleId,
    version: Option<i32>,
) -> Result<()> {
    sqlx::query(
        "with next as (
           insert into rule_set as s (tenant_id, number) values ($1, 1)
           on conflict (tenant_id) do update set number = s.number + 1
           returning number
         )
         insert into rule_set_change (tenant_id, number, rule_id, version) select $1, number, $2, $3 from next",
    )
    .bind(tenant.uuid())
    .bind(rule.uuid())
    .bind(version)
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the specifications of the rule set of a number, as JSON: of rules that were deleted since, too.
pub async fn rule_set_specs(db: &mut PgConnection, tenant: TenantId, number: i64) -> Result<Vec<(RuleId, String)>> {
    let rows: Vec<(uuid::Uuid, String)> = sqlx::query_as(
        "select v.rule_id, v.spec from (
           select distinct on (rule_id) rule_id, version from rule_set_change
           where tenant_id = $1 and number <= $2 order by rule_id, number desc
         ) as in_set
         join rule_version v on v.tenant_id = $1 and v.rule_id = in_set.rule_id and v.version = in_set.version
         order by v.rule_id",
    )
    .bind(tenant.uuid())
    .bind(number)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(id, spec)| (id.into(), spec)).collect())
}

/// Returns the rule that an experiment has a variant of, and the variant's specification as JSON.
pub async fn rule_variant(
    db: &mut PgConnection,
    tenant: TenantId,
    experiment: ExperimentId,
) -> Result<Option<(RuleId, String)>> {
    let row: Option<(String, String)> = sqlx::query_as(
        "select subject, spec from experiment where tenant_id = $1 and id = $2 and kind = 'rule' and spec is not null",
    )
    .bind(tenant.uuid())
    .bind(experiment.uuid())
    .fetch_optional(db)
    .await?;
    row.map(|(rule, spec)| Ok((rule.parse().map_err(corrupt)?, spec))).transpose()
}

/// How many rules a tenant has.
pub async fn rule_count(db: &mut PgConnection, tenant: TenantId) -> Result<i64> {
    let count = sqlx::query_scalar("select count(*) from rule where tenant_id = $1").bind(tenant.uuid());
    Ok(count.fetch_one(db).await?)
}

/// Writes a rule and its version: a new one, or the next version of an existing one. `false` if the rule has changed
/// since.
pub async fn rule_put(db: &mut PgConnection, tenant: TenantId, rule: &StoredRule) -> Result<bool> {
    // Plain data always has a JSON form.
    let spec = serde_json::to_string(&rule.spec).unwrap_or_default();
    let done = sqlx::query(
        "with written as (
           insert into rule as r (tenant_id, id, uid, version, spec, created_at, updated_at)
           values ($1, $2, $3, $4, $5, $6, $7)
           on conflict (tenant_id, id) do update set
             uid = excluded.uid, version = excluded.version, spec = excluded.spec, updated_at = excluded.updated_at
           where r.version = $4 - 1
           returning id
         )
         insert into rule_version (tenant_id, rule_id, version, spec, created_at)
         select $1, id, $4, $5, $7 from written",
    )
    .bind(tenant.uuid())
    .bind(rule.id.uuid())
    .bind(&rule.uid)
    .bind(rule.version)
    .bind(spec)
    .bind(jiff_sqlx::Timestamp::from(rule.created_at))
    .bind(jiff_sqlx::Timestamp::from(rule.updated_at))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    rule_set_change(db, tenant, rule.id, Some(rule.version)).await?;
    Ok(true)
}

/// Returns a rule as it was in a version.
pub async fn rule_version_get(
    db: &mut PgConnection,
    tenant: TenantId,
    id: RuleId,
    version: i32,
) -> Result<Option<RuleSpec>> {
    let spec: Option<String> =
        sqlx::query_scalar("select spec from rule_version where tenant_id = $1 and rule_id = $2 and version = $3")
            .bind(tenant.uuid())
            .bind(id.uuid())
            .bind(version)
            .fetch_optional(db)
            .await?;
    spec.map(|spec| serde_json::from_str(&spec).map_err(corrupt)).transpose()
}

/// The rule with this id, or with this uid.
pub async fn rule_find(
    db: &mut PgConnection,
    tenant: TenantId,
    id: Option<RuleId>,
    uid: &str,
) -> Result<Option<StoredRule>> {
    let row: Option<Row> = sqlx::query_as(
        "select id, uid, version, spec, created_at, updated_at from rule
         where tenant_id = $1 and (id = $2 or uid = $3)",
    )
    .bind(tenant.uuid())
    .bind(id.map(RuleId::uuid))
    .bind(uid)
    .fetch_optional(db)
    .await?;
    row.map(stored).transpose()
}

const LISTED: &str = "select id, uid, version, spec, created_at, updated_at from rule
   where tenant_id = $1 and id < $2 order by id desc limit $3";

/// All of a tenant's rules, the newest first.
pub async fn rule_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<StoredRule>> {
    let rows: Vec<Row> =
        sqlx::query_as(LISTED).bind(tenant.uuid()).bind(uuid::Uuid::max()).bind(i64::MAX).fetch_all(db).await?;
    rows.into_iter().map(stored).collect()
}

/// A page of a tenant's rules from before `before`, the newest first.
pub async fn rule_page(
    db: &mut PgConnection,
    tenant: TenantId,
    before: Option<RuleId>,
    limit: u32,
) -> Result<PageRows<StoredRule>> {
    let rows = sqlx::query(LISTED)
        .bind(tenant.uuid())
        .bind(before.map_or(uuid::Uuid::max(), RuleId::uuid))
        .bind(one_more(limit))
        .fetch(db);
    page(rows, limit, |row| stored(Row::from_row(row)?)).await
}

/// Deletes a rule; its versions stay.
pub async fn rule_delete(db: &mut PgConnection, tenant: TenantId, id: RuleId) -> Result<()> {
    let done = sqlx::query("delete from rule where tenant_id = $1 and id = $2")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .execute(&mut *db)
        .await?;
    if done.rows_affected() > 0 {
        rule_set_change(db, tenant, id, None).await?;
    }
    Ok(())
}
