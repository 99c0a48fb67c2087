//! The schema: what its migrations promise, where it may be, and which roles work with it.

use std::{fs, sync::Arc};

use angarium_store::Store;
use xtask::{database::Options, project};

use crate::support::{
    database::{Database, eventually, migrate, server_folder},
    gateway::TestGateway,
    messages::hook,
    sink::Sink,
};

/// The text of each migration, without comments.
fn migrations() -> Vec<(String, String)> {
    let folder = project::root().join("host/store/migrations");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |line: &str| line.split("--").next().unwrap_or_default().to_owned();
    files
        .map(|file| {
            let sql = fs::read_to_string(&file).unwrap().lines().map(text).collect::<Vec<_>>().join("\n");
            (file.file_name().unwrap().to_string_lossy().into_owned(), sql)
        })
        .collect()
}

/// The constraints of tables in this SQL that leave their names to PostgreSQL.
fn unnamed_constraints(sql: &str) -> Vec<String> {
    // Every second part is the body of a function or of a block.
    let outside: String = sql.split("$$").step_by(2).collect();
    let tables = outside.split(';').filter(|it| it.contains("create table") || it.contains("alter table"));
    let mut unnamed = Vec::new();
    for table in tables {
        let spaced = table.replace('(', " ( ").replace(')', " ) ").replace(',', " , ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            let begins = match *word {
                "primary" | "foreign" => words.get(at + 1) == Some(&"key"),
                "unique" | "check" => true,
                // The end of a foreign key that has its name at its beginning.
                "references" => words[..at].last() != Some(&")"),
                _ => false,
            };
            if begins && (at < 2 || words[at - 2] != "constraint") {
                unnamed.push(words[at.saturating_sub(3)..(at + 4).min(words.len())].join(" "));
            }
        }
    }
    unnamed
}

#[test]
fn every_constraint_has_a_name() {
    let careless = "create table t (id uuid primary key, n int unique check (n > 0), u uuid references t);
                    alter table t add foreign key (u) references t;
                    create table fine (n int constraint fine_n check (n > 0), constraint fine_u foreign key (u) references t);";
    assert_eq!(unnamed_constraints(careless).len(), 5, "{:?}", unnamed_constraints(careless));
    for (file, sql) in migrations() {
        assert_eq!(unnamed_constraints(&sql), [""; 0], "{file}: add `constraint NAME` before it");
    }
}

#[test]
fn migrations_leave_the_choice_of_the_schema_to_the_operator() {
    for (file, sql) in migrations() {
        for named in ["schema public", "public.", "pg_advisory"] {
            assert!(!sql.contains(named), "{file} has `{named}`");
        }
        let (open, fixed) =
            (sql.matches("security definer").count(), sql.matches("definer set search_path from current").count());
        assert_eq!(open, fixed, "{file}: a function that runs as the owner keeps the migration's search path");
    }
}

/// The address of the same database with another search path.
fn in_schema(url: &str, schema: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options[search_path]={schema}")
}

#[tokio::test]
async fn two_installations_share_a_database() {
    let (db, sink) = (Database::new().await, Sink::start().await);
    db.sql("create schema second").await;
    let url = in_schema(&db.url, "second");
    migrate(&url).await;
    let store = Store::new(&url, 4).unwrap();
    let second = Database { name: db.name.clone(), url: url.clone(), store, cluster: Arc::clone(&db.cluster) };
    let first_url = db.url.clone();
    let first = TestGateway::on(db, &first_url, 1, "").await;
    let second = TestGateway::on(second, &url, 1, "").await;
    first.webhook(&sink, "/first").await;
    second.webhook(&sink, "/second").await;
    for (gateway, path, other) in [(&first, "/first", &second), (&second, "/second", &first)] {
        let id = gateway.send(&hook()).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
        assert_eq!(sink.received_at(path).len(), 1);
        assert_eq!(other.call(reqwest::Method::GET, &format!("/v1/messages/{id}"), None).await.status, 404);
        assert_eq!(other.call_as(&gateway.key, reqwest::Method::GET, "/v1/messages", None).await.status, 401);
    }
    for schema in ["public", "second"] {
        let folded = format!("select sum(count) from {schema}.stat_rollup where grain = 'day' and kind = 'message'");
        eventually("the roll-up of a message", || async { (first.db.sql(&folded).await == "1").then_some(()) }).await;
        let weeks = format!(
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = '{schema}' and c.relkind = 'r' and c.relname ~ '^message_[0-9]{{4}}w[0-9]{{2}}$'"
        );
        assert_ne!(first.db.sql(&weeks).await, "0", "{schema} has partitions of its own");
    }
}

#[tokio::test]
async fn the_roles_may_log_in_and_an_open_one_is_refused() {
    let folder = server_folder();
    let db = Database::alone(Options::alone(&folder.path().join("data"))).await;
    db.sql(
        "alter role angarium_app login; alter role angarium_worker login; grant angarium_app to angarium_worker;
         create role angarium_serve login in role angarium_app, angarium_worker",
    )
    .await;
    migrate(&db.url).await;
    let logins = db.sql("select count(*) from pg_roles where rolname like 'angarium_%' and rolcanlogin").await;
    assert_eq!(logins, "3", "a migration leaves roles as they are");
    let by = |role: &str| db.url.replace("user=postgres", &format!("user={role}"));
    let (worker, serve) = (by("angarium_worker"), by("angarium_serve"));
    let sink = Sink::start().await;
    let gateway = TestGateway::on(db, &worker, 1, "").await;
    gateway.webhook(&sink, "/in").await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");

    // As a member of the worker's role, the tenants' role would see all tenants.
    gateway.db.sql("revoke angarium_app from angarium_worker; grant angarium_worker to angarium_app").await;
    let mut settings = gateway.settings().clone();
    settings.database = serve;
    let refused = settings.command_line(&["tenant", "list"]).unwrap_err().to_string();
    assert!(refused.contains("the role `angarium_app` would see all tenants"), "{refused}");
}
