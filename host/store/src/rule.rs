//! Rules beside what all documents share: the rule sets that decisions name, and the sources of a rule book.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Result;
use angarium_domain::ids::{ExperimentId, RuleId, TenantId};

/// Returns a stamp of a tenant's rules and live scripts, operators' too, that changes with them; `None` if there are
/// none.
pub async fn rulebook_stamp(db: &mut PgConnection, tenant: TenantId) -> Result<Option<String>> {
    let stamp = sqlx::query_scalar(
        "select md5(string_agg(part, ',' order by part)) from (
           select 'rules ' || number as part from rule_set
           where tenant_id = $1 and exists (select from document where tenant_id = $1 and kind = 'rule')
           union all
           select id || ' ' || active_version from document
           where tenant_id = $1 and kind = 'script' and active_version is not null
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
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select d.id, v.body from document d
         join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
           and v.version = d.active_version
         where d.tenant_id = $1 and d.kind = 'rule' order by d.id",
    )
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
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select v.document_id, v.body from (
           select distinct on (rule_id) rule_id, version from rule_set_change
           where tenant_id = $1 and number <= $2 order by rule_id, number desc
         ) as in_set
         join document_version v on v.tenant_id = $1 and v.kind = 'rule' and v.document_id = in_set.rule_id
           and v.version = in_set.version
         order by v.document_id",
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
    let row: Option<(Uuid, String)> = sqlx::query_as(
        "select v.document_id, v.body from experiment e
         join document_version v on v.tenant_id = e.tenant_id and v.kind = e.kind and v.document_id = e.document_id
           and v.version = e.version
         where e.tenant_id = $1 and e.id = $2 and e.kind = 'rule'",
    )
    .bind(tenant.uuid())
    .bind(experiment.uuid())
    .fetch_optional(db)
    .await?;
    Ok(row.map(|(rule, spec)| (rule.into(), spec)))
}
