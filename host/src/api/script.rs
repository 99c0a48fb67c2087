//! `/v1/scripts`: a tenant's scripts. Create is not promote: a version does nothing until it is live.

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App,
    auth::{RulesRead, RulesWrite, Tenant},
    draft::Draft,
    fields::Fields,
    json::Json,
    page::Page,
    problem::{Problem, ProblemBody},
    request::UrlPath,
    rule::done,
};
use crate::{
    domain::audit::Action,
    rules::{
        cases::Suite,
        script::{Modules, Script, limits},
    },
    store::{
        audit::Deed,
        script::{
            ScriptRow, script_count, script_insert, script_list, script_previous, script_promote, script_retire,
            script_versions,
        },
    },
};

/// Scripts of one tenant.
const MOST_SCRIPTS: i64 = 100;
const LONGEST_NAME: usize = 64;
const LONGEST_CASES: usize = 256 << 10;

/// A new version of a script, which does nothing until promoted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "source": "fn admit(message) { if message.text.contains(\"casino\") { refuse(\"not ours\") } }",
    "cases": [{"name": "a casino", "hook": "admit", "message": {"text": "the casino"}, "expect": {"action": "refuse"}}]
}))]
pub struct NewScriptVersion {
    /// In Rhai; at most 64 KiB.
    #[schema(min_length = 1, max_length = 65536)]
    source: String,
    /// Facts and what is expected of them: a version of which one fails is refused.
    #[serde(default)]
    #[schema(value_type = Vec<Object>, required = false)]
    cases: Option<Box<RawValue>>,
}

/// Which version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    #[schema(minimum = 1)]
    version: i32,
}

/// A version of a script.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScriptVersion)]
pub struct ScriptAnswer {
    name: String,
    version: i32,
    #[schema(value_type = ScriptState)]
    state: String,
    source: String,
    #[schema(value_type = Option<Vec<Object>>)]
    cases: Option<Box<RawValue>>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
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

/// List the scripts by name, each with the version that is live, or else its latest.
#[utoipa::path(get, path = "/v1/scripts", tag = "rules", operation_id = "listScripts",
    responses((status = 200, description = "All of them.", body = Page<ScriptAnswer>)))]
pub async fn list(tenant: Tenant<RulesRead>, State(app): State<App>) -> Result<Json<Page<ScriptAnswer>>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rows = script_list(&mut txn, tenant.id, "", MOST_SCRIPTS as u32).await?;
    Ok(Json(Page::whole(rows.into_iter().map(ScriptAnswer::from).collect())))
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

/// Add a version, which does nothing until promoted. One that does not compile, or of which a case fails, is refused.
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
    let new = tried(name.clone(), new, fields).await?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let known = script_versions(&mut txn, tenant.id, &name).await?;
    if known.is_empty() && script_count(&mut txn, tenant.id).await? >= MOST_SCRIPTS {
        return Err(Problem::conflict("too_many_scripts", "there are 100 scripts"));
    }
    let cases = new.cases.as_ref().map(|cases| cases.get());
    let version = script_insert(&mut txn, tenant.id, &name, &new.source, cases).await?;
    let rows = script_versions(&mut txn, tenant.id, &name).await?;
    let answer = rows.into_iter().find(|row| row.version == version).ok_or_else(missing)?;
    let deed = Deed::new(Action::ScriptAdded, &name).after(serde_json::json!({ "version": version }));
    done(&app, &tenant, txn, &deed).await?;
    Ok((StatusCode::CREATED, Json(answer.into())))
}

/// Let a version decide, in place of the one that does.
#[utoipa::path(post, path = "/v1/scripts/{script}/promote", tag = "rules", operation_id = "promoteScript",
    params(("script" = String, Path, description = "Its name.")),
    request_body = Promotion,
    responses((status = 200, description = "The version, which is live.", body = ScriptAnswer)))]
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
        (status = 409, description = "No version was live before.", body = ProblemBody,
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
    responses((status = 204, description = "No version of it decides anything.")))]
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
    if let Some(version) = script_retire(&mut txn, tenant.id, &name).await? {
        let deed = Deed::new(Action::ScriptRetired, &name).before(serde_json::json!({ "version": version }));
        done(&app, &tenant, txn, &deed).await?;
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
    if !script_promote(&mut txn, tenant.id, name, version).await? {
        return Err(Problem::field("/version", "unknown_version", "the script has no such version"));
    }
    let rows = script_versions(&mut txn, tenant.id, name).await?;
    let answer = rows.into_iter().find(|row| row.version == version).ok_or_else(missing)?;
    let deed = Deed::new(action, name)
        .before(serde_json::json!({ "version": before }))
        .after(serde_json::json!({ "version": version }));
    done(app, tenant, txn, &deed).await?;
    Ok(Json(answer.into()))
}

/// The version, once it compiles and its cases pass.
async fn tried(name: String, new: NewScriptVersion, mut fields: Fields) -> Result<NewScriptVersion, Problem> {
    let fits = (1..=limits::SOURCE).contains(&new.source.len());
    fields.check(fits, "source", "wrong_length", || "has to have 1 to 65536 bytes".to_owned());
    let cases = new.cases.as_ref().map_or("[]", |cases| cases.get());
    fields.check(cases.len() <= LONGEST_CASES, "cases", "too_long", || "exceeds 256 KiB".to_owned());
    if let Some(problem) = fields.into_problem() {
        return Err(problem);
    }
    let work = tokio::task::spawn_blocking(move || {
        let mut fields = Fields::default();
        try_out(&name, &new, &mut fields);
        (new, fields)
    });
    let (new, fields) = work.await.map_err(|error| Problem::internal(&error))?;
    fields.into_problem().map_or(Ok(new), Err)
}

fn try_out(name: &str, new: &NewScriptVersion, fields: &mut Fields) {
    let script = match Script::compile(name, &new.source, &Modules::none()) {
        Ok(script) => script,
        Err(error) => {
            let place = error.line.zip(error.column).map(|(line, column)| format!("line {line}, column {column}: "));
            let detail = format!("{}{}", place.unwrap_or_default(), error.reason);
            return fields.check(false, "source", "does_not_compile", || detail);
        }
    };
    let Some(cases) = &new.cases else { return };
    match Suite::parse(&format!("{{\"cases\": {}}}", cases.get())) {
        Err(reason) => fields.check(false, "cases", "wrong_format", || reason),
        Ok(suite) => {
            let outcomes = suite.run(&script);
            fields.each("cases", &outcomes, |fields, outcome| {
                if !outcome.passed() {
                    let differences: Vec<_> = outcome.differences.iter().map(ToString::to_string).collect();
                    fields.bad("case_failed", format!("`{}`: {}", outcome.case, differences.join("; ")));
                }
            });
        }
    }
}

/// A name that a script can have.
fn existing(name: &str) -> Result<(), Problem> {
    let valid = (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    if valid { Ok(()) } else { Err(missing()) }
}

fn missing() -> Problem {
    Problem::not_found("script")
}

impl From<ScriptRow> for ScriptAnswer {
    fn from(row: ScriptRow) -> Self {
        let created_at = row.created_at();
        let cases = row.cases.and_then(|cases| RawValue::from_string(cases).ok());
        Self { name: row.name, version: row.version, state: row.state, source: row.source, cases, created_at }
    }
}
