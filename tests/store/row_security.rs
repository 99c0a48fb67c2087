//! Tenants never see each other: the catalogue and the roles prove it.

use angarium_store::{api_key, message_search::message_list, tenant_set};

use crate::support::database::Database;

#[tokio::test]
async fn every_table_with_a_tenant_has_forced_row_level_security() {
    let db = Database::new().await;
    let open = db
        .sql(
            "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = 'public' and c.relkind in ('r', 'p')
               and (c.relname = 'tenant' or exists (select from pg_attribute a
                 where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped))
               and not (c.relrowsecurity and c.relforcerowsecurity)",
        )
        .await;
    assert_eq!(open.trim(), "", "tables without row-level security");
}

#[tokio::test]
async fn the_roles_own_nothing_and_cannot_pass_row_level_security() {
    let db = Database::new().await;
    let strong = db
        .sql("select rolname from pg_roles where rolname like 'angarium_%' and (rolsuper or rolbypassrls or rolcreaterole)")
        .await;
    assert_eq!(strong.trim(), "");
    let owned = db
        .sql("select relname from pg_class c join pg_roles r on r.oid = c.relowner where r.rolname like 'angarium_%'")
        .await;
    assert_eq!(owned.trim(), "");
}

#[tokio::test]
async fn a_unique_key_begins_with_the_tenant() {
    let db = Database::new().await;
    let loose = db
        .sql(
            "select i.indexrelid::regclass from pg_index i
             join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
             where n.nspname = 'public' and i.indisunique and a.attname <> 'tenant_id'
               and c.relname not in ('tenant', 'provider', 'provider_component', 'operator_script', 'operator_audit', 'task_lease', '_sqlx_migrations')
               -- Looked up before a tenant is known; 256 random bits tell nothing.
               and i.indexrelid::regclass::text not in ('api_key_hash', 'connection_callback_token')",
        )
        .await;
    assert_eq!(loose.trim(), "");
}

#[tokio::test]
async fn a_transaction_without_a_tenant_sees_nothing() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let mut session = db.store.session(angarium_store::DatabaseRole::App).await.unwrap();
    let mut txn = session.begin().await.unwrap();
    tenant_set(&mut txn, tenant).await.unwrap();
    txn.commit().await.unwrap();
    // After the commit the setting reads as an empty string.
    let mut txn = session.begin().await.unwrap();
    assert!(message_list(&mut txn, tenant, &Default::default(), None, 10).await.unwrap().rows.is_empty());
    assert!(api_key::api_key_list(&mut txn, tenant).await.unwrap().is_empty());
}

/// A request that is dropped while it waits for its transaction leaves no open transaction behind,
/// in which later writes would vanish (sqlx #4385).
#[tokio::test]
async fn a_dropped_request_leaves_no_transaction_open() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let mut random = crate::support::seed::rng();
    for _ in 0..200 {
        let begin = db.store.tenant(tenant);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(random.u64(0..600)), begin).await;
    }
    db.tenant("kept").await;
    let idle = crate::support::database::eventually("every connection being idle", || async {
        let open = db
            .sql(&format!(
                "select count(*) from pg_stat_activity where datname = '{}' and state = 'idle in transaction'",
                db.name
            ))
            .await;
        (open.trim() == "0").then_some(open)
    });
    idle.await;
    assert_eq!(db.sql("select count(*) from tenant where name = 'kept'").await.trim(), "1");
}
