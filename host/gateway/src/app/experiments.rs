//! Experiments: a version of a rule or script is tried beside the live one, as a shadow or for a part of the recipients.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use utoipa::ToSchema;

use super::{App, Principal, Result, change::Change, documents, error::UseCaseError, fields::Fields, scripts};
use angarium_domain::{
    audit::Action,
    document::DocumentKind,
    experiment::{Arm, ExperimentCount, ExperimentKind, ExperimentMode},
    ids::{DifferenceId, TenantId},
};
use angarium_store::{
    Connection, StoreError,
    audit::AuditEntry,
    document::{DocumentRow, document_version_get},
    experiment::{
        DifferenceRow, ExperimentRow, difference_list, experiment_begin, experiment_counts, experiment_end,
        experiment_endings, experiment_last, experiment_resize,
    },
    page::PageRows,
};

/// A version to try, and its effect meanwhile.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 4, "mode": "canary", "percentage": 10}))]
pub struct NewExperiment {
    /// The variant.
    #[schema(minimum = 1)]
    version: i32,
    mode: ExperimentModeName,
    /// Of recipients, only with the mode `canary`. While it grows, the recipients that are in stay in.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 99)]
    percentage: Option<u8>,
}

/// The effect of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ExperimentMode)]
pub enum ExperimentModeName {
    /// It is asked, and not followed.
    Shadow,
    /// It decides about a part of the recipients, always the same ones.
    Canary,
}

/// An experiment that runs, or the last one, with its results. Nodes add their counts each second.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Experiment)]
pub struct ExperimentReport {
    /// The script's name, or the rule's id.
    of: String,
    /// The variant.
    version: i32,
    /// The version that it is compared with; null where none was live.
    live_version: Option<i32>,
    mode: ExperimentModeName,
    /// Of recipients; null for a shadow.
    percentage: Option<u8>,
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Null while it runs.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    variant: ArmReport,
    /// The live version meanwhile; a shadow has no counts here.
    live: ArmReport,
    /// A shadow's answers that differ from the live ones; the latest 1,000 are kept.
    different: i64,
    /// Questions that a shadow was not asked, since it could not keep up.
    dropped: i64,
}

/// The results of one of the two versions.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ExperimentArm)]
pub struct ArmReport {
    /// Messages that it had its say on; of a shadow: questions of any hook.
    asked: i64,
    /// Of them refused, by any rule or script.
    refused: i64,
    /// Of them held back.
    held: i64,
    /// Runs that failed.
    faults: i64,
    /// The number of its messages' deliveries in each state; of the latest 100,000 messages.
    deliveries: BTreeMap<String, i64>,
}

/// A shadow's answer that differs from the live one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Difference)]
pub struct ShadowDifference {
    id: String,
    message: String,
    /// `admit`, `route` or `retry`; of a rule `admit`.
    hook: String,
    /// The members of the decision that differ, as the live version has them.
    #[schema(value_type = Object)]
    live: Box<RawValue>,
    /// The same members, as the variant has them.
    #[schema(value_type = Object)]
    variant: Box<RawValue>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl ShadowDifference {
    /// Returns its id, for the cursor of a page.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Begins an experiment. One that runs with the same versions and mode goes on with another percentage; any other
/// experiment of the document ends.
pub async fn begin(
    app: &App,
    by: &Principal,
    kind: ExperimentKind,
    name: &str,
    new: NewExperiment,
    mut fields: Fields,
) -> Result<ExperimentReport> {
    let mode = new.mode(&mut fields);
    fields.finish()?;
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, kind.document(), name).await?;
    let variant = document_version_get(&mut change, by.tenant, kind.document(), document.id, new.version).await?;
    let variant = variant.ok_or_else(|| UseCaseError::field("/version", "unknown_version", "does not exist"))?;
    if document.active_version == Some(new.version) {
        let detail = "must be another version than the one that is live";
        return Err(UseCaseError::field("/version", "already_live", detail));
    }
    match kind {
        ExperimentKind::Rule => {}
        ExperimentKind::Script => scripts::still_compiles(&mut change, by.tenant, &document, &variant).await?,
    }
    let wanted = ExperimentRow::new(kind, document.id, new.version, document.active_version, mode);
    begin_or_resize(&mut change, by.tenant, &wanted).await?;
    let report = report(&mut change, by.tenant, kind, &document).await?;
    let action = match kind {
        ExperimentKind::Rule => Action::RuleExperimentBegun,
        ExperimentKind::Script => Action::ScriptExperimentBegun,
    };
    change.commit(AuditEntry::new(action, &report.of).after(recorded(&wanted))).await?;
    Ok(report)
}

async fn begin_or_resize(change: &mut Change, tenant: TenantId, wanted: &ExperimentRow) -> Result<()> {
    let running = running(change, tenant, wanted.kind, wanted.document).await?;
    let same = |it: &&ExperimentRow| {
        let versions = it.version == wanted.version && it.live_version == wanted.live_version;
        versions && it.mode.as_str() == wanted.mode.as_str()
    };
    if let Some(same) = running.as_ref().filter(same) {
        if let Some(percentage) = wanted.mode.percentage() {
            experiment_resize(change, tenant, same.id, percentage).await?;
        }
        return Ok(());
    }
    if let Some(other) = running {
        experiment_end(change, tenant, other.id).await?;
    }
    experiment_begin(change, tenant, wanted).await.map_err(taken)
}

/// Returns the running experiment of a document, or the last one.
pub async fn get(app: &App, tenant: TenantId, kind: ExperimentKind, name: &str) -> Result<ExperimentReport> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = documents::named(&mut txn, tenant, kind.document(), name).await?;
    report(&mut txn, tenant, kind, &document).await
}

/// Ends an experiment. Its results can be read for thirty days.
pub async fn end(app: &App, by: &Principal, kind: ExperimentKind, name: &str) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, kind.document(), name).await?;
    let row = ended(&mut change, by.tenant, kind, &document).await?.ok_or(MISSING)?;
    let action = match kind {
        ExperimentKind::Rule => Action::RuleExperimentEnded,
        ExperimentKind::Script => Action::ScriptExperimentEnded,
    };
    let entry = AuditEntry::new(action, documents::subject(kind.document(), &document)).before(recorded(&row));
    change.commit(entry).await
}

/// Returns a page of the differences of the running experiment, or of the last one.
pub async fn differences(
    app: &App,
    tenant: TenantId,
    kind: ExperimentKind,
    name: &str,
    after: Option<DifferenceId>,
    limit: u32,
) -> Result<PageRows<ShadowDifference>> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = documents::named(&mut txn, tenant, kind.document(), name).await?;
    let row = experiment_last(&mut txn, tenant, kind, document.id).await?.ok_or(MISSING)?;
    let PageRows { rows, more } = difference_list(&mut txn, tenant, row.id, after, limit).await?;
    Ok(PageRows { rows: rows.into_iter().map(ShadowDifference::from).collect(), more })
}

/// Returns the running experiment of a document.
pub async fn running(
    db: &mut Connection,
    tenant: TenantId,
    kind: ExperimentKind,
    document: uuid::Uuid,
) -> Result<Option<ExperimentRow>> {
    Ok(experiment_last(db, tenant, kind, document).await?.filter(|it| it.ended_at.is_none()))
}

/// Ends the experiment of a document, if one runs, and returns it.
pub async fn ended(
    change: &mut Change,
    tenant: TenantId,
    kind: ExperimentKind,
    document: &DocumentRow,
) -> Result<Option<ExperimentRow>> {
    let Some(row) = running(change, tenant, kind, document.id).await? else { return Ok(None) };
    experiment_end(change, tenant, row.id).await?;
    Ok(Some(row))
}

/// Ends the experiment of a version that becomes the active one.
///
/// # Errors
/// When the version was compared with another one than it would replace.
pub async fn decided(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    document: &DocumentRow,
    wanted: i32,
) -> Result<()> {
    let kind = match kind {
        DocumentKind::Route => return Ok(()),
        DocumentKind::Rule => ExperimentKind::Rule,
        DocumentKind::Script => ExperimentKind::Script,
    };
    let Some(row) = running(change, tenant, kind, document.id).await?.filter(|it| it.version == wanted) else {
        return Ok(());
    };
    if row.live_version != document.active_version {
        let detail = "another version became active since the experiment began: begin it again, or end it first";
        return Err(UseCaseError::conflict("version_passed", detail));
    }
    Ok(experiment_end(change, tenant, row.id).await?)
}

const MISSING: UseCaseError = UseCaseError::NotFound("experiment");

async fn report(
    db: &mut Connection,
    tenant: TenantId,
    kind: ExperimentKind,
    document: &DocumentRow,
) -> Result<ExperimentReport> {
    let row = experiment_last(db, tenant, kind, document.id).await?.ok_or(MISSING)?;
    let (mut variant, mut live) = (ArmReport::default(), ArmReport::default());
    let (mut different, mut dropped) = (0, 0);
    for (arm, what, count) in experiment_counts(db, tenant, row.id).await? {
        let arm = if arm == Arm::Variant.as_str() { &mut variant } else { &mut live };
        let places = [
            (ExperimentCount::Asked, &mut arm.asked),
            (ExperimentCount::Refused, &mut arm.refused),
            (ExperimentCount::Held, &mut arm.held),
            (ExperimentCount::Faults, &mut arm.faults),
            (ExperimentCount::Different, &mut different),
            (ExperimentCount::Dropped, &mut dropped),
        ];
        places.into_iter().filter(|(counted, _)| counted.as_str() == what).for_each(|(_, place)| *place += count);
    }
    for (arm, state, count) in experiment_endings(db, tenant, row.id).await? {
        let arm = if arm == Arm::Variant.as_str() { &mut variant } else { &mut live };
        arm.deliveries.insert(state, count);
    }
    let percentage = row.mode.percentage();
    Ok(ExperimentReport {
        of: documents::subject(kind.document(), document),
        version: row.version,
        live_version: row.live_version,
        mode: if percentage.is_some() { ExperimentModeName::Canary } else { ExperimentModeName::Shadow },
        percentage,
        started_at: row.started_at,
        ended_at: row.ended_at,
        variant,
        live,
        different,
        dropped,
    })
}

fn recorded(row: &ExperimentRow) -> Value {
    json!({"version": row.version, "live_version": row.live_version, "mode": row.mode.as_str(),
        "percentage": row.mode.percentage()})
}

fn taken(error: StoreError) -> UseCaseError {
    match error {
        StoreError::Conflict { constraint } if constraint == "experiment_of_rules" => UseCaseError::conflict(
            "another_experiment",
            "another rule has an experiment: one of a tenant's rules is tried at a time",
        ),
        other => other.into(),
    }
}

impl NewExperiment {
    fn mode(&self, fields: &mut Fields) -> ExperimentMode {
        match (self.mode, self.percentage) {
            (ExperimentModeName::Shadow, None) => ExperimentMode::Shadow,
            (ExperimentModeName::Shadow, Some(_)) => {
                let detail = || "is only allowed together with the mode `canary`".to_owned();
                fields.check(false, "percentage", "not_allowed", detail);
                ExperimentMode::Shadow
            }
            (ExperimentModeName::Canary, None) => {
                fields.missing("percentage");
                ExperimentMode::Shadow
            }
            (ExperimentModeName::Canary, Some(percentage)) => ExperimentMode::Canary { percentage },
        }
    }
}

impl From<DifferenceRow> for ShadowDifference {
    fn from(row: DifferenceRow) -> Self {
        let DifferenceRow { id, message, hook, live, variant, at } = row;
        // The text was written as an object.
        let object = |text: String| RawValue::from_string(text).unwrap_or_default();
        let (live, variant) = (object(live), object(variant));
        Self { id: id.to_string(), message: message.to_string(), hook, live, variant, at }
    }
}
