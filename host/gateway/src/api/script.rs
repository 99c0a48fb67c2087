//! `/v1/scripts`: a tenant's scripts. Create is not promote: a version does nothing until it is live.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App,
    auth::{RulesRead, RulesWrite, Tenant},
    draft::Draft,
    experiment,
    fields::Fields,
    json::Json,
    page::Page,
    problem::{Problem, ProblemBody},
    request::UrlPath,
    rule::done,
};
use angarium_domain::{audit::Action, ids::TenantId, rule::Fails};
use angarium_rules::{
    cases::Suite,
    script::{Modules, Script, ScriptError, limits, may_import},
};
use angarium_store::{
    Connection as Db,
    audit::AuditEntry,
    script::{
        ScriptRow, module_list, operator_script_in_service, script_count, script_insert, script_list, script_previous,
        script_promote, script_reset, script_retire, script_versions,
    },
};

/// Scripts of one tenant.
const MOST_SCRIPTS: i64 = 100;
const LONGEST_NAME: usize = 64;
const LONGEST_CASES: usize = 64 << 10;

/// A new version of a script, which does nothing until promoted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "source": "fn admit(message) { if message.text.contains(\"casino\") { refuse(\"not ours\") } }",
    "cases": [{"name": "a casino", "hook": "admit", "message": {"text": "the casino"}, "expect": {"action": "refuse"}}]
}))]
pub struct NewScriptVersion {
    /// In Rhai; at most 65,536 characters.
    #[schema(min_length = 1, max_length = 65536)]
    source: String,
    /// Facts and the expected decisions: a version that fails one is refused.
    #[serde(default)]
    #[schema(value_type = Vec<Object>, required = false)]
    cases: Option<Box<RawValue>>,
}

/// Which version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 4}))]
pub struct Promotion {
    #[schema(minimum = 1)]
    pub(super) version: i32,
}

/// A version of a script.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScriptVersion)]
pub struct ScriptAnswer {
    name: String,
    version: i32,
    #[schema(value_type = ScriptState)]
    state: String,
    #[schema(value_type = ScriptOrigin)]
    origin: &'static str,
    source: String,
    /// Null of an operators' script: its cases are files of the folder.
    #[schema(value_type = Option<Vec<Object>>)]
    cases: Option<Box<RawValue>>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A script with its state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Script)]
pub struct ScriptStatus {
    name: String,
    /// The version that is live, or else the latest.
    version: i32,
    #[schema(value_type = ScriptState)]
    state: String,
    #[schema(value_type = ScriptOrigin)]
    origin: &'static str,
    source: String,
    /// The hooks that it defines, if it is in service: `admit`, `route`, …
    hooks: Vec<&'static str>,
    /// The time since when its breaker has it switched off on the answering node; null if it is asked.
    #[schema(value_type = Option<String>, format = DateTime)]
    off_since: Option<Timestamp>,
    /// The fate of a message whose `admit` fails or is not asked; null if the script is not in service.
    #[schema(value_type = Option<Fails>)]
    fails: Option<&'static str>,
}

/// The owner of a script.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "answers have the values; this lists them in the document")]
pub enum ScriptOrigin {
    /// It came through the API.
    Tenant,
    /// It is a file of the operators' folder.
    Operators,
}

/// Whether a version decides anything.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "the database has the values; this lists them in the document")]
pub enum ScriptState {
    Draft,
    Shadow,
    Canary,
    Live,
    Retired,
}

/// List the scripts by name, each with the version that is live, or else its latest: the tenant's own, and the
/// operators' that are asked about its messages, with their origin.
#[utoipa::path(get, path = "/v1/scripts", tag = "rules", operation_id = "listScripts",
    responses((status = 200, description = "All of them.", body = Page<ScriptAnswer>)))]
pub async fn list(tenant: Tenant<RulesRead>, State(app): State<App>) -> Result<Json<Page<ScriptAnswer>>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let own = script_list(&mut txn, tenant.id, "", MOST_SCRIPTS as u32).await?.into_iter().map(ScriptAnswer::from);
    let operators = operator_script_in_service(&mut txn, tenant.id).await?.into_iter().map(ScriptAnswer::of_operators);
    let mut all: Vec<_> = own.chain(operators).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Json(Page::whole(all)))
}

/// Show a script with its state: one of the tenant's own, or an operators' that is asked about the tenant's messages.
#[utoipa::path(get, path = "/v1/scripts/{script}", tag = "rules", operation_id = "getScript",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 200, description = "The script.", body = ScriptStatus)))]
pub async fn get(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptStatus>, Problem> {
    Ok(Json(status(&app, tenant.id, &name).await?))
}

/// Have a script asked again that its breaker has switched off: on every node, at once.
#[utoipa::path(post, path = "/v1/scripts/{script}/reset", tag = "rules", operation_id = "resetScript",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 200, description = "The script, which is asked.", body = ScriptStatus)))]
pub async fn reset(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptStatus>, Problem> {
    let before = status(&app, tenant.id, &name).await?;
    let mut txn = app.store.tenant(tenant.id).await?;
    script_reset(&mut txn, tenant.id, &name).await?;
    let entry =
        AuditEntry::new(Action::ScriptReset, &name).before(serde_json::json!({ "off_since": before.off_since }));
    done(&app, &tenant, txn, &entry).await?;
    Ok(Json(status(&app, tenant.id, &name).await?))
}

async fn status(app: &App, tenant: TenantId, name: &str) -> Result<ScriptStatus, Problem> {
    let config = app.tenant_configs.tenant(tenant).await?;
    let running = config.rulebook.as_ref().and_then(|book| book.scripts.iter().find(|it| it.name == name));
    let rows = if existing(name).is_ok() {
        let mut txn = app.store.tenant(tenant).await?;
        script_versions(&mut txn, tenant, name).await?
    } else {
        Vec::new()
    };
    let own = rows.iter().find(|row| row.state == "live").or(rows.first().filter(|_| running.is_none()));
    let own = own.cloned().map(|row| (row.version, row.state, "tenant", row.source));
    let operators = || running.map(|it| (it.version, "live".to_owned(), "operators", it.source.to_string()));
    let (version, state, origin, source) = own.or_else(operators).ok_or_else(missing)?;
    let running = running.filter(|it| it.version == version && state == "live");
    Ok(ScriptStatus {
        name: name.to_owned(),
        version,
        state,
        origin,
        source,
        hooks: running.map(|it| it.hooks().iter().map(|hook| hook.as_str()).collect()).unwrap_or_default(),
        off_since: running.and_then(|it| it.off_since()),
        fails: running.map(|it| it.fails.as_str()),
    })
}

/// Show a script's versions, the latest first.
#[utoipa::path(get, path = "/v1/scripts/{script}/versions", tag = "rules", operation_id = "listScriptVersions",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 200, description = "All of them.", body = Page<ScriptAnswer>)))]
pub async fn versions(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Page<ScriptAnswer>>, Problem> {
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let rows = script_versions(&mut txn, tenant.id, &name).await?;
    if rows.is_empty() {
        return Err(missing());
    }
    Ok(Json(Page::whole(rows.into_iter().map(ScriptAnswer::from).collect())))
}

/// Add a version, which has no effect until it is promoted. A version that does not compile or fails a case is refused.
#[utoipa::path(post, path = "/v1/scripts/{script}/versions", tag = "rules", operation_id = "createScriptVersion",
    params(("script" = String, Path, description = "Its name: small letters, digits, `-` and `_`.",
        pattern = "^[a-z][a-z0-9_-]{0,63}$")),
    request_body = NewScriptVersion,
    responses(
        (status = 201, description = "The version.", body = ScriptAnswer),
        (status = 409, description = "There are 100 scripts, or another version came first.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn create_version(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, fields): Draft<NewScriptVersion>,
) -> Result<(StatusCode, Json<ScriptAnswer>), Problem> {
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let modules = module_list(&mut txn, tenant.id).await?;
    drop(txn);
    let new = tried(&app, tenant.id, &name, new, modules, fields).await?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let known = script_versions(&mut txn, tenant.id, &name).await?;
    if known.is_empty() && script_count(&mut txn, tenant.id).await? >= MOST_SCRIPTS {
        return Err(Problem::conflict("too_many_scripts", "there are 100 scripts"));
    }
    let cases = new.cases.as_ref().map(|cases| cases.get());
    let version = script_insert(&mut txn, tenant.id, &name, &new.source, cases).await?;
    let rows = script_versions(&mut txn, tenant.id, &name).await?;
    let answer = rows.into_iter().find(|row| row.version == version).ok_or_else(missing)?;
    let entry = AuditEntry::new(Action::ScriptAdded, &name).after(serde_json::json!({ "version": version }));
    done(&app, &tenant, txn, &entry).await?;
    Ok((StatusCode::CREATED, Json(answer.into())))
}

/// Let a version decide, in place of the one that does.
#[utoipa::path(post, path = "/v1/scripts/{script}/promote", tag = "rules", operation_id = "promoteScript",
    params(("script" = String, Path, description = "Its name.")),
    request_body = Promotion,
    responses(
        (status = 200, description = "The version, which is live.", body = ScriptAnswer),
        (status = 409, description = "It does not compile with the modules as they are now.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn promote(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(Promotion { version }): Json<Promotion>,
) -> Result<Json<ScriptAnswer>, Problem> {
    put_in_service(&app, &tenant, &name, Some(version)).await
}

/// Let the version decide that did before the one that does.
#[utoipa::path(post, path = "/v1/scripts/{script}/rollback", tag = "rules", operation_id = "rollbackScript",
    params(("script" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The version, which is live again.", body = ScriptAnswer),
        (status = 409, description = "No version was live before, or it does not compile with the modules as they are now.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptAnswer>, Problem> {
    put_in_service(&app, &tenant, &name, None).await
}

/// Take a script out of service. Its versions stay, and can be promoted again.
#[utoipa::path(delete, path = "/v1/scripts/{script}", tag = "rules", operation_id = "retireScript",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 204, description = "The script is out of service.")))]
pub async fn retire(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    if script_versions(&mut txn, tenant.id, &name).await?.is_empty() {
        return Err(missing());
    }
    let tried = experiment::script::ended(&mut txn, tenant.id, &name).await?;
    let version = script_retire(&mut txn, tenant.id, &name).await?;
    if version.is_some() || tried.is_some() {
        let entry = AuditEntry::new(Action::ScriptRetired, &name).before(serde_json::json!({ "version": version }));
        done(&app, &tenant, txn, &entry).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a version live, or the one that was before.
async fn put_in_service(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    name: &str,
    version: Option<i32>,
) -> Result<Json<ScriptAnswer>, Problem> {
    existing(name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let rows = script_versions(&mut txn, tenant.id, name).await?;
    if rows.is_empty() {
        return Err(missing());
    }
    let before = rows.iter().find(|row| row.state == "live").map(|row| row.version);
    let (version, action) = match version {
        Some(version) => (version, Action::ScriptPromoted),
        None => {
            let previous = script_previous(&mut txn, tenant.id, name).await?;
            let none = || Problem::conflict("no_previous_version", "no version of the script was live before");
            (previous.ok_or_else(none)?, Action::ScriptRolledBack)
        }
    };
    let row = rows.into_iter().find(|row| row.version == version);
    still_compiles(&mut txn, tenant.id, row).await?;
    if !script_promote(&mut txn, tenant.id, name, version).await? {
        return Err(Problem::field("/version", "unknown_version", "does not exist"));
    }
    experiment::script::promoted(&mut txn, tenant.id, name, version).await?;
    let rows = script_versions(&mut txn, tenant.id, name).await?;
    let answer = rows.into_iter().find(|row| row.version == version).ok_or_else(missing)?;
    let entry = AuditEntry::new(action, name)
        .before(serde_json::json!({ "version": before }))
        .after(serde_json::json!({ "version": version }));
    done(app, tenant, txn, &entry).await?;
    Ok(Json(answer.into()))
}

/// Modules may have changed since a version was added.
pub(super) async fn still_compiles(db: &mut Db, tenant: TenantId, row: Option<ScriptRow>) -> Result<(), Problem> {
    let Some(row) = row.filter(|row| may_import(&row.source)) else { return Ok(()) };
    let modules = module_list(db, tenant).await?;
    let work = tokio::task::spawn_blocking(move || {
        let modules = Modules::stored(&modules);
        Script::stored(&row.name, &row.source, &modules).map(drop)
    });
    let compiled = work.await.map_err(|error| Problem::internal(&error))?;
    compiled.map_err(|error| Problem::conflict("does_not_compile", error.to_string()))
}

/// The version, once it compiles and its cases pass.
async fn tried(
    app: &App,
    tenant: TenantId,
    name: &str,
    new: NewScriptVersion,
    modules: BTreeMap<String, String>,
    mut fields: Fields,
) -> Result<NewScriptVersion, Problem> {
    source_fits(&new.source, &mut fields);
    let cases = new.cases.as_ref().map_or("[]", |cases| cases.get());
    fields.check(cases.len() <= LONGEST_CASES, "cases", "too_long", || "must be at most 64 KiB of JSON".to_owned());
    fields.finish()?;
    let mut fields = Fields::default();
    let cases = || {
        let modules = Modules::stored(&modules);
        try_out(name, &new, &modules, &mut fields);
    };
    app.rules.try_out(tenant, || app.rules.as_for_cases(cases)).await;
    fields.finish()?;
    Ok(new)
}

fn try_out(name: &str, new: &NewScriptVersion, modules: &Modules, fields: &mut Fields) {
    let Some(script) = compiled(name, &new.source, modules, fields) else { return };
    let Some(cases) = &new.cases else { return };
    match Suite::parse(&format!("{{\"cases\": {}}}", cases.get())) {
        Err(reason) => fields.check(false, "cases", "wrong_format", || reason),
        Ok(suite) => {
            let outcomes = suite.run(&script);
            fields.each("cases", &outcomes, |fields, outcome| {
                if !outcome.passed() {
                    let differences: Vec<_> = outcome.differences.iter().map(ToString::to_string).collect();
                    fields.bad(
                        "case_failed",
                        format!("must pass the case `{}`: {}", outcome.case, differences.join("; ")),
                    );
                }
            });
        }
    }
}

/// Whether a source has a length that one can have.
pub(super) fn source_fits(source: &str, fields: &mut Fields) -> bool {
    let fits = (1..=limits::SOURCE).contains(&source.chars().count());
    fields.check(fits, "source", "wrong_length", || "must have 1 to 65536 characters".to_owned());
    fits
}

/// Compiles a source; its faults are reported with their place.
pub(super) fn compiled(name: &str, source: &str, modules: &Modules, fields: &mut Fields) -> Option<Script> {
    let compiled = Script::compile(name, source, modules);
    let place = |error: &ScriptError| {
        let place = error.line.zip(error.column).map(|(line, column)| format!("line {line}, column {column}: "));
        format!("must compile: {}{}", place.unwrap_or_default(), error.reason)
    };
    compiled.map_err(|error| fields.check(false, "source", "does_not_compile", || place(&error))).ok()
}

/// A name that a script can have.
pub(super) fn existing(name: &str) -> Result<(), Problem> {
    let valid = (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    if valid { Ok(()) } else { Err(missing()) }
}

pub(super) fn missing() -> Problem {
    Problem::not_found("script")
}

impl ScriptAnswer {
    fn of_operators(row: ScriptRow) -> Self {
        Self { origin: "operators", ..Self::from(row) }
    }
}

/// One of the tenant's own.
impl From<ScriptRow> for ScriptAnswer {
    fn from(row: ScriptRow) -> Self {
        let created_at = row.created_at();
        let cases = row.cases.and_then(|cases| RawValue::from_string(cases).ok());
        let ScriptRow { name, version, source, state, .. } = row;
        Self { name, version, state, origin: "tenant", source, cases, created_at }
    }
}
