//! Versioned documents: routes, rules and scripts share these queries. The particular queries of a kind are in its
//! file.

use jiff::Timestamp;
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    page::{PageRows, one_more, page},
};
use angarium_domain::{document::DocumentKind, ids::TenantId};

/// A document without its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRow {
    pub id: Uuid,
    /// The client's own name for it; a script's name.
    pub uid: Option<String>,
    /// A route's.
    pub channel: Option<String>,
    /// `None`: it does nothing.
    pub active_version: Option<i32>,
    /// The version that a rollback returns to.
    pub previous_version: Option<i32>,
    pub latest_version: i32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A version of a document. It never changes, and stays when its document is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    pub document: Uuid,
    pub version: i32,
    /// JSON of a route or a rule, the source of a script.
    pub body: String,
    /// JSON: the cases that a script passed before it was stored.
    pub cases: Option<String>,
    pub created_at: Timestamp,
    /// When it last became active; `None`: never.
    pub activated_at: Option<Timestamp>,
}

macro_rules! head {
    () => {
        "d.id, d.uid, d.channel, d.active_version, d.previous_version, d.latest_version, d.created_at, d.updated_at"
    };
}

macro_rules! version {
    () => {
        "v.document_id, v.version, v.body, v.cases, v.created_at as version_created_at, v.activated_at"
    };
}

impl FromRow<'_, PgRow> for DocumentRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            uid: row.try_get("uid")?,
            channel: row.try_get("channel")?,
            active_version: row.try_get("active_version")?,
            previous_version: row.try_get("previous_version")?,
            latest_version: row.try_get("latest_version")?,
            created_at: row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff(),
            updated_at: row.try_get::<jiff_sqlx::Timestamp, _>("updated_at")?.to_jiff(),
        })
    }
}

impl FromRow<'_, PgRow> for VersionRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let activated_at: Option<jiff_sqlx::Timestamp> = row.try_get("activated_at")?;
        Ok(Self {
            document: row.try_get("document_id")?,
            version: row.try_get("version")?,
            body: row.try_get("body")?,
            cases: row.try_get("cases")?,
            created_at: row.try_get::<jiff_sqlx::Timestamp, _>("version_created_at")?.to_jiff(),
            activated_at: activated_at.map(jiff_sqlx::Timestamp::to_jiff),
        })
    }
}

/// A document that does not exist yet.
#[derive(Debug, Clone, Copy)]
pub struct NewDocument<'a> {
    pub id: Uuid,
    pub uid: Option<&'a str>,
    /// A route's.
    pub channel: Option<&'a str>,
}

/// Inserts a document without versions. Its uid is unique among the tenant's documents of the kind.
pub async fn document_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    new: NewDocument<'_>,
) -> Result<()> {
    sqlx::query("insert into document (tenant_id, kind, id, uid, channel) values ($1, $2, $3, $4, $5)")
        .bind(tenant.uuid())
        .bind(kind.as_str())
        .bind(new.id)
        .bind(new.uid)
        .bind(new.channel)
        .execute(db)
        .await?;
    Ok(())
}

/// Returns the document with this id, or with this uid.
pub async fn document_find(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    id: Option<Uuid>,
    uid: &str,
) -> Result<Option<DocumentRow>> {
    let row = sqlx::query_as(concat!(
        "select ",
        head!(),
        " from document d where d.tenant_id = $1 and d.kind = $2 and (d.id = $3 or d.uid = $4)"
    ))
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id)
    .bind(uid);
    Ok(row.fetch_optional(db).await?)
}

/// Reads a document again and locks it for the rest of the transaction.
pub async fn document_lock(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    id: Uuid,
) -> Result<Option<DocumentRow>> {
    let row = sqlx::query_as(concat!(
        "select ",
        head!(),
        " from document d where d.tenant_id = $1 and d.kind = $2 and d.id = $3 for update"
    ))
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id);
    Ok(row.fetch_optional(db).await?)
}

/// A document and the version that stands for it: the active one, or else the latest.
pub type StandingDocument = (DocumentRow, VersionRow);

const STANDING: &str = concat!(
    "select ",
    head!(),
    ", ",
    version!(),
    " from document d
     join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
       and v.version = coalesce(d.active_version, d.latest_version)
     where d.tenant_id = $1 and d.kind = $2 and d.id < $3 and ($4::text is null or d.channel = $4)
     order by d.id desc limit $5"
);

/// Returns a page of a tenant's documents from before `before`, the newest first; of routes those of a channel.
pub async fn document_page(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    channel: Option<&str>,
    before: Option<Uuid>,
    limit: u32,
) -> Result<PageRows<StandingDocument>> {
    let rows = sqlx::query(STANDING)
        .bind(tenant.uuid())
        .bind(kind.as_str())
        .bind(before.unwrap_or(Uuid::max()))
        .bind(channel)
        .bind(one_more(limit))
        .fetch(db);
    page(rows, limit, |row| Ok((DocumentRow::from_row(row)?, VersionRow::from_row(row)?))).await
}

/// Returns all of a tenant's documents of a kind, the newest first.
pub async fn document_all(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
) -> Result<Vec<StandingDocument>> {
    let rows = sqlx::query(STANDING)
        .bind(tenant.uuid())
        .bind(kind.as_str())
        .bind(Uuid::max())
        .bind(None::<&str>)
        .bind(i64::MAX)
        .fetch_all(db)
        .await?;
    rows.iter().map(|row| Ok((DocumentRow::from_row(row)?, VersionRow::from_row(row)?))).collect()
}

/// Returns how many documents of a kind a tenant has.
pub async fn document_count(db: &mut PgConnection, tenant: TenantId, kind: DocumentKind) -> Result<i64> {
    let count = sqlx::query_scalar("select count(*) from document where tenant_id = $1 and kind = $2");
    Ok(count.bind(tenant.uuid()).bind(kind.as_str()).fetch_one(db).await?)
}

/// Deletes a document; its versions stay on record.
pub async fn document_delete(db: &mut PgConnection, tenant: TenantId, kind: DocumentKind, id: Uuid) -> Result<()> {
    sqlx::query("delete from document where tenant_id = $1 and kind = $2 and id = $3")
        .bind(tenant.uuid())
        .bind(kind.as_str())
        .bind(id)
        .execute(db)
        .await?;
    Ok(())
}

/// Inserts a document's next version. Concurrent calls are numbered one after the other. `None` if the document does
/// not exist.
pub async fn document_version_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    id: Uuid,
    body: &str,
    cases: Option<&str>,
) -> Result<Option<VersionRow>> {
    let row = sqlx::query_as(concat!(
        "with head as (
           update document set latest_version = latest_version + 1, updated_at = now()
           where tenant_id = $1 and kind = $2 and id = $3 returning latest_version
         )
         insert into document_version as v (tenant_id, kind, document_id, version, body, cases)
         select $1, $2, $3, latest_version, $4, $5 from head
         returning ",
        version!()
    ))
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id)
    .bind(body)
    .bind(cases);
    Ok(row.fetch_optional(db).await?)
}

/// Returns one version, if it exists.
pub async fn document_version_get(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    id: Uuid,
    version: i32,
) -> Result<Option<VersionRow>> {
    let row = sqlx::query_as(concat!(
        "select ",
        version!(),
        " from document_version v where v.tenant_id = $1 and v.kind = $2 and v.document_id = $3 and v.version = $4"
    ))
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id)
    .bind(version);
    Ok(row.fetch_optional(db).await?)
}

/// Returns the latest `most` versions of each of these documents, the one in service and the one that is tried; each
/// document's newest first.
pub async fn document_versions(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    documents: &[Uuid],
    most: i32,
) -> Result<Vec<VersionRow>> {
    let rows = sqlx::query_as(concat!(
        "select ",
        version!(),
        " from document d
         cross join lateral (
           select * from document_version v where v.tenant_id = $1 and v.kind = $2 and v.document_id = d.id
             and (v.version > d.latest_version - $4 or v.version = d.active_version or exists (
               select from experiment e where e.tenant_id = $1 and e.kind = $2 and e.document_id = d.id
                 and e.version = v.version and e.ended_at is null))
         ) v
         where d.tenant_id = $1 and d.kind = $2 and d.id = any ($3::uuid[])
         order by v.document_id, v.version desc"
    ))
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(documents)
    .bind(most);
    Ok(rows.fetch_all(db).await?)
}

/// Makes a version the active one; `previous` is the target of a rollback. The caller holds [`document_lock`].
pub async fn document_activate(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: DocumentKind,
    id: Uuid,
    active: i32,
    previous: Option<i32>,
) -> Result<()> {
    sqlx::query(
        "with activated as (
           update document_version set activated_at = clock_timestamp()
           where tenant_id = $1 and kind = $2 and document_id = $3 and version = $4
           returning octet_length(body) as bytes
         )
         update document set active_version = $4, active_bytes = activated.bytes, previous_version = $5, updated_at = now()
         from activated where tenant_id = $1 and kind = $2 and id = $3",
    )
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id)
    .bind(active)
    .bind(previous)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes a document out of service; a rollback returns to the version that was active.
pub async fn document_deactivate(db: &mut PgConnection, tenant: TenantId, kind: DocumentKind, id: Uuid) -> Result<()> {
    sqlx::query(
        "update document set previous_version = active_version, active_version = null, active_bytes = 0,
           updated_at = now()
         where tenant_id = $1 and kind = $2 and id = $3 and active_version is not null",
    )
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(id)
    .execute(db)
    .await?;
    Ok(())
}
