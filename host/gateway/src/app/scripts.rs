//! Scripts. A version does nothing until it is activated or tried. The first version of a name creates the script.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Principal, Result,
    documents::{self, VersionBody},
    error::UseCaseError,
    experiments,
    fields::Fields,
};
use angarium_domain::{
    audit::Action,
    document::DocumentKind,
    experiment::{ExperimentKind, ExperimentMode},
    ids::TenantId,
    rule::Fails,
};
use angarium_rules::{
    cases::Suite,
    script::{Modules, Script, ScriptError, limits, may_import},
};
use angarium_store::{
    Connection,
    audit::AuditEntry,
    document::{DocumentRow, NewDocument, VersionRow, document_all, document_deactivate, document_find},
    experiment::{ExperimentRow, experiment_running},
    script::{OperatorScriptRow, module_list, operator_script_in_service, script_reset},
};

const KIND: DocumentKind = DocumentKind::Script;
const LONGEST_NAME: usize = 64;
const LONGEST_CASES: usize = 64 << 10;

/// A new version of a script, which does nothing until it is activated.
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
    /// Facts and the expected answers: a version that fails one is refused.
    #[serde(default)]
    #[schema(value_type = Vec<Object>, required = false)]
    cases: Option<Box<RawValue>>,
}

/// A version of a script.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScriptVersion)]
pub struct ScriptVersionView {
    name: String,
    version: i32,
    state: ScriptState,
    origin: ScriptOrigin,
    source: String,
    /// Null for an operators' script: its cases are files of the folder.
    #[schema(value_type = Option<Vec<Object>>)]
    cases: Option<Box<RawValue>>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last became live; null for one that never was, and for an operators' script.
    #[schema(value_type = Option<String>, format = DateTime)]
    activated_at: Option<Timestamp>,
}

/// A script with its state on the node that answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Script)]
pub struct ScriptStatus {
    name: String,
    /// The live version, or else the latest.
    version: i32,
    state: ScriptState,
    origin: ScriptOrigin,
    source: String,
    /// The hooks that it defines, where it is in service: `admit`, `route`, …
    hooks: Vec<&'static str>,
    /// Since when its breaker has had it switched off on the node that answers; null where it is asked.
    #[schema(value_type = Option<String>, format = DateTime)]
    off_since: Option<Timestamp>,
    /// The fate of a message whose `admit` fails or is not asked; null where it is not in service.
    #[schema(value_type = Option<Fails>)]
    fails: Option<&'static str>,
}

/// Where a script comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScriptOrigin {
    /// The API.
    Tenant,
    /// A file of the operators' folder.
    Operators,
}

/// Whether a version decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScriptState {
    /// It was never live.
    Draft,
    /// It is asked, and not followed.
    Shadow,
    /// It decides about a part of the recipients.
    Canary,
    Live,
    /// It was live.
    Retired,
}

/// Returns the scripts by name, each with its live version or else the latest: the tenant's own, and the operators' for
/// its messages.
pub async fn list(app: &App, tenant: TenantId) -> Result<Vec<ScriptVersionView>> {
    let mut txn = app.store.tenant(tenant).await?;
    let experiments = experiment_running(&mut txn, tenant).await?;
    let own = document_all(&mut txn, tenant, KIND).await?.into_iter().map(|(document, version)| {
        let experiment = experiments.iter().map(|it| &it.experiment).find(|it| it.document == document.id);
        view(&document, version, experiment)
    });
    let operators = operator_script_in_service(&mut txn, tenant).await?.into_iter().map(ScriptVersionView::from);
    let mut all: Vec<_> = own.chain(operators).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

/// Returns a script as it stands: one of the tenant's own, or an operators' that is asked about the tenant's messages.
pub async fn status(app: &App, tenant: TenantId, name: &str) -> Result<ScriptStatus> {
    let config = app.tenant_configs.tenant(tenant).await?;
    let running = config.rulebook.as_ref().and_then(|book| book.scripts.iter().find(|it| it.name == name));
    let versions = match documents::with_versions(app, tenant, KIND, name).await {
        Err(UseCaseError::NotFound(_)) => None,
        found => Some(found?),
    };
    let standing = versions.and_then(|(document, versions)| {
        let standing = document.active_version.or(Some(document.latest_version).filter(|_| running.is_none()))?;
        let version = versions.into_iter().find(|it| it.version == standing)?;
        Some((document, version))
    });
    let (version, state, origin, source) = match (standing, running) {
        (Some((document, version)), _) => {
            let mut txn = app.store.tenant(tenant).await?;
            let experiment = experiments::running(&mut txn, tenant, ExperimentKind::Script, document.id).await?;
            let state = state(&document, &version, experiment.as_ref());
            (version.version, state, ScriptOrigin::Tenant, version.body)
        }
        (None, Some(it)) => (it.version, ScriptState::Live, ScriptOrigin::Operators, it.source.to_string()),
        (None, None) => return Err(MISSING),
    };
    let running = running.filter(|it| it.version == version && state == ScriptState::Live);
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

/// Resets the breaker of a script, on every node at once.
pub async fn reset(app: &App, by: &Principal, name: &str) -> Result<ScriptStatus> {
    let before = status(app, by.tenant, name).await?;
    let mut change = app.change(by).await?;
    script_reset(&mut change, by.tenant, name).await?;
    let entry = AuditEntry::new(Action::ScriptReset, name).before(json!({ "off_since": before.off_since }));
    change.commit(entry).await?;
    status(app, by.tenant, name).await
}

/// Returns a script's versions, the latest first.
pub async fn versions(app: &App, tenant: TenantId, name: &str) -> Result<Vec<ScriptVersionView>> {
    let (document, versions) = documents::with_versions(app, tenant, KIND, name).await?;
    let mut txn = app.store.tenant(tenant).await?;
    let experiment = experiments::running(&mut txn, tenant, ExperimentKind::Script, document.id).await?;
    Ok(versions.into_iter().map(|version| view(&document, version, experiment.as_ref())).collect())
}

/// Returns one version of a script.
async fn version(app: &App, tenant: TenantId, name: &str, number: Option<i32>) -> Result<ScriptVersionView> {
    let all = versions(app, tenant, name).await?;
    let wanted = |it: &ScriptVersionView| match number {
        Some(number) => it.version == number,
        None => it.state == ScriptState::Live,
    };
    all.into_iter().find(wanted).ok_or(MISSING)
}

/// Adds a version, which does nothing until it is activated or tried.
///
/// # Errors
/// When it does not compile, or one of its cases fails.
pub async fn create_version(
    app: &App,
    by: &Principal,
    name: &str,
    new: NewScriptVersion,
    fields: Fields,
) -> Result<ScriptVersionView> {
    if !is_name(name) {
        return Err(MISSING);
    }
    let modules = {
        let mut txn = app.store.tenant(by.tenant).await?;
        module_list(&mut txn, by.tenant).await?
    };
    let NewScriptVersion { source, cases } = tried(app, by.tenant, name, new, modules, fields).await?;
    let body = VersionBody { body: &source, cases: cases.as_ref().map(|cases| cases.get()) };
    let mut change = app.change(by).await?;
    let (document, added) = match document_find(&mut change, by.tenant, KIND, None, name).await? {
        Some(document) => {
            let version = documents::add(&mut change, by.tenant, KIND, document.id, body).await?;
            (document, version)
        }
        None => {
            let new = NewDocument { id: Uuid::now_v7(), uid: Some(name), channel: None };
            documents::create(&mut change, by.tenant, KIND, new, body).await?
        }
    };
    let entry = documents::added(KIND, &document, &added)?;
    change.commit(entry).await?;
    Ok(view(&document, added, None))
}

/// Makes a version live, and returns it.
pub async fn activate(
    app: &App,
    by: &Principal,
    name: &str,
    activation: documents::VersionActivation,
) -> Result<ScriptVersionView> {
    documents::activate(app, by, KIND, name, activation).await?;
    version(app, by.tenant, name, None).await
}

/// Returns to the version that was live before, and returns it.
pub async fn roll_back(app: &App, by: &Principal, name: &str) -> Result<ScriptVersionView> {
    documents::roll_back(app, by, KIND, name).await?;
    version(app, by.tenant, name, None).await
}

/// Takes a script out of service and ends its experiment. Its versions stay, and can be activated again.
pub async fn retire(app: &App, by: &Principal, name: &str) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    let tried = experiments::ended(&mut change, by.tenant, ExperimentKind::Script, &document).await?;
    if document.active_version.is_none() && tried.is_none() {
        return Ok(());
    }
    document_deactivate(&mut change, by.tenant, KIND, document.id).await?;
    let entry = AuditEntry::new(Action::ScriptRetired, name).before(json!({ "version": document.active_version }));
    change.commit(entry).await
}

/// Checks that a version compiles with the present modules: they may have changed since it was added.
pub async fn still_compiles(
    db: &mut Connection,
    tenant: TenantId,
    document: &DocumentRow,
    version: &VersionRow,
) -> Result<()> {
    if !may_import(&version.body) {
        return Ok(());
    }
    let modules = module_list(db, tenant).await?;
    let (name, source) = (document.uid.clone().unwrap_or_default(), version.body.clone());
    let work = tokio::task::spawn_blocking(move || {
        let modules = Modules::stored(&modules);
        Script::stored(&name, &source, &modules).map(drop)
    });
    let compiled = work.await.map_err(|error| UseCaseError::internal(&error))?;
    compiled.map_err(|error| UseCaseError::conflict("does_not_compile", error.to_string()))
}

/// Returns a version's body as the API shows it.
pub fn shown(version: &VersionRow) -> Value {
    let cases: Value = version.cases.as_deref().and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
    json!({"source": version.body, "cases": cases})
}

/// Returns the version, once it compiles and its cases pass.
async fn tried(
    app: &App,
    tenant: TenantId,
    name: &str,
    new: NewScriptVersion,
    modules: BTreeMap<String, String>,
    mut fields: Fields,
) -> Result<NewScriptVersion> {
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
    fields.finish().map(|()| new)
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

/// Whether a source has an allowed length.
pub fn source_fits(source: &str, fields: &mut Fields) -> bool {
    let fits = (1..=limits::SOURCE).contains(&source.chars().count());
    fields.check(fits, "source", "wrong_length", || "must have 1 to 65536 characters".to_owned());
    fits
}

/// Compiles a source; the problem names the place.
pub fn compiled(name: &str, source: &str, modules: &Modules, fields: &mut Fields) -> Option<Script> {
    let compiled = Script::compile(name, source, modules);
    let place = |error: &ScriptError| {
        let place = error.line.zip(error.column).map(|(line, column)| format!("line {line}, column {column}: "));
        format!("must compile: {}{}", place.unwrap_or_default(), error.reason)
    };
    compiled.map_err(|error| fields.check(false, "source", "does_not_compile", || place(&error))).ok()
}

/// Whether a script may have this name.
pub fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

const MISSING: UseCaseError = UseCaseError::NotFound("script");

fn state(document: &DocumentRow, version: &VersionRow, experiment: Option<&ExperimentRow>) -> ScriptState {
    if document.active_version == Some(version.version) {
        return ScriptState::Live;
    }
    match experiment.filter(|it| it.version == version.version).map(|it| it.mode) {
        Some(ExperimentMode::Shadow) => ScriptState::Shadow,
        Some(ExperimentMode::Canary { .. }) => ScriptState::Canary,
        None if version.activated_at.is_some() => ScriptState::Retired,
        None => ScriptState::Draft,
    }
}

fn view(document: &DocumentRow, version: VersionRow, experiment: Option<&ExperimentRow>) -> ScriptVersionView {
    let state = state(document, &version, experiment);
    ScriptVersionView {
        name: document.uid.clone().unwrap_or_default(),
        version: version.version,
        state,
        origin: ScriptOrigin::Tenant,
        source: version.body,
        cases: version.cases.and_then(|cases| RawValue::from_string(cases).ok()),
        created_at: version.created_at,
        activated_at: version.activated_at,
    }
}

impl From<OperatorScriptRow> for ScriptVersionView {
    fn from(row: OperatorScriptRow) -> Self {
        let OperatorScriptRow { name, version, source, created_at } = row;
        let (state, origin) = (ScriptState::Live, ScriptOrigin::Operators);
        Self { name, version, state, origin, source, cases: None, created_at, activated_at: None }
    }
}
