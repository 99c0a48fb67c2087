//! Experiments with scripts and rules: the variants, and their results beside the live versions.

pub mod rule;
pub mod script;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    fields::Fields,
    page::{Page, Paging},
    problem::Problem,
};
use angarium_domain::{
    experiment::{Arm, ExperimentCount, ExperimentKind, ExperimentMode},
    ids::{DifferenceId, ExperimentId, TenantId},
    rule::RuleSpec,
};
use angarium_store::{
    Connection as Db, StoreError,
    experiment::{
        DifferenceRow, ExperimentRow, difference_list, experiment_begin, experiment_counts, experiment_end,
        experiment_endings, experiment_last, experiment_resize,
    },
};

/// How a candidate is tried.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = CandidateMode)]
pub enum ModeAnswer {
    /// It is asked, and not followed.
    Shadow,
    /// It decides about a part of the recipients.
    Canary,
}

/// The variant under trial, or the last one, and its results. Nodes add their counts each second.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TriedCandidate)]
pub struct CandidateAnswer {
    /// The script's name, or the rule's id.
    of: String,
    /// The script's version; for a rule, the version that this changes.
    version: i32,
    mode: ModeAnswer,
    /// The share of recipients; null for a shadow.
    percentage: Option<u8>,
    /// A rule as it would be.
    #[schema(value_type = Option<RuleSpec>)]
    rule: Option<RuleSpec>,
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Null while it is tried.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    candidate: ArmAnswer,
    /// The live version's figures in the same time; nothing is counted here for a shadow.
    live: ArmAnswer,
    /// A shadow's differing answers; the latest 1,000 are kept.
    different: i64,
    /// Questions that a shadow was not asked, since it could not keep up.
    dropped: i64,
}

/// How one of the two fares.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = CandidateArm)]
pub struct ArmAnswer {
    /// Messages that it had its say on; of a shadow: questions of any hook.
    asked: i64,
    /// The number of refused ones, by any rule or script.
    refused: i64,
    /// The number of held ones.
    held: i64,
    /// Runs that failed.
    faults: i64,
    /// How many deliveries of its messages are in which state; of the latest 100,000 messages.
    deliveries: BTreeMap<String, i64>,
}

/// A differing answer of a shadow.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Difference)]
pub struct DifferenceAnswer {
    id: String,
    message: String,
    /// `admit`, `route` or `retry`; of a rule `admit`.
    hook: String,
    /// The members of the decision that differ, as they were.
    #[schema(value_type = Object)]
    live: Box<RawValue>,
    /// The same as the candidate would have them.
    #[schema(value_type = Object)]
    candidate: Box<RawValue>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// A canary of this size.
fn canary_of(percentage: i32, fields: &mut Fields) -> ExperimentMode {
    let fits = (1..=99).contains(&percentage);
    fields.check(fits, "percentage", "out_of_range", || "must be a whole number from 1 to 99".to_owned());
    ExperimentMode::Canary { percentage: u8::try_from(percentage).unwrap_or(1) }
}

/// Begins an experiment. If the same variant already runs, it continues with another percentage; any other variant
/// starts over, and ends the previous experiment.
async fn begin(db: &mut Db, tenant: TenantId, wanted: &ExperimentRow) -> Result<(), Problem> {
    let running = running(db, tenant, wanted.kind, &wanted.subject).await?;
    let same = |it: &&ExperimentRow| {
        it.version == wanted.version && it.spec == wanted.spec && it.mode.as_str() == wanted.mode.as_str()
    };
    if let Some(same) = running.as_ref().filter(same) {
        if let Some(percentage) = wanted.mode.percentage() {
            experiment_resize(db, tenant, same.id, percentage).await?;
        }
        return Ok(());
    }
    if let Some(other) = running {
        experiment_end(db, tenant, other.id).await?;
    }
    experiment_begin(db, tenant, wanted).await.map_err(taken)
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Conflict { constraint } if constraint == "experiment_of_rules" => Problem::conflict(
            "another_candidate",
            "another rule has a candidate: one of a tenant's rules is tried at a time",
        ),
        StoreError::Conflict { constraint } if constraint == "experiment_of_script" => {
            Problem::conflict("another_candidate", "another candidate of the script came first")
        }
        other => other.into(),
    }
}

/// Returns the running experiment of a script or rule.
async fn running(
    db: &mut Db,
    tenant: TenantId,
    kind: ExperimentKind,
    subject: &str,
) -> Result<Option<ExperimentRow>, Problem> {
    Ok(experiment_last(db, tenant, kind, subject).await?.filter(|it| it.ended_at.is_none()))
}

fn new_experiment(
    kind: ExperimentKind,
    subject: String,
    version: i32,
    mode: ExperimentMode,
    spec: Option<String>,
) -> ExperimentRow {
    ExperimentRow {
        id: ExperimentId::new(),
        kind,
        subject,
        version,
        mode,
        spec,
        started_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
    }
}

fn none() -> Problem {
    Problem::not_found("candidate")
}

/// How a candidate fares, or the last one did.
async fn shown(db: &mut Db, tenant: TenantId, kind: ExperimentKind, subject: &str) -> Result<CandidateAnswer, Problem> {
    let row = experiment_last(db, tenant, kind, subject).await?.ok_or_else(none)?;
    let (mut candidate, mut live) = (ArmAnswer::default(), ArmAnswer::default());
    let (mut different, mut dropped) = (0, 0);
    for (arm, what, count) in experiment_counts(db, tenant, row.id).await? {
        let arm = if arm == Arm::Candidate.as_str() { &mut candidate } else { &mut live };
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
        let arm = if arm == Arm::Candidate.as_str() { &mut candidate } else { &mut live };
        arm.deliveries.insert(state, count);
    }
    let ExperimentRow { subject: of, version, mode, spec, started_at, ended_at, .. } = row;
    let rule = spec.and_then(|spec| serde_json::from_str(&spec).ok());
    let percentage = mode.percentage();
    let mode = if percentage.is_some() { ModeAnswer::Canary } else { ModeAnswer::Shadow };
    Ok(CandidateAnswer {
        of,
        version,
        mode,
        percentage,
        rule,
        started_at,
        ended_at,
        candidate,
        live,
        different,
        dropped,
    })
}

/// A page of a candidate's differences, or of the last one's.
async fn differences_of(
    db: &mut Db,
    tenant: TenantId,
    kind: ExperimentKind,
    subject: &str,
    paging: &Paging<DifferenceId>,
) -> Result<Page<DifferenceAnswer>, Problem> {
    let row = experiment_last(db, tenant, kind, subject).await?.ok_or_else(none)?;
    let rows = difference_list(db, tenant, row.id, paging.after, paging.limit).await?;
    Ok(Page::of(rows, |row| row.id.to_string(), DifferenceAnswer::from))
}

impl From<DifferenceRow> for DifferenceAnswer {
    fn from(row: DifferenceRow) -> Self {
        let DifferenceRow { id, message, hook, live, candidate, at } = row;
        // The text was written as an object.
        let object = |text: String| RawValue::from_string(text).unwrap_or_default();
        let (live, candidate) = (object(live), object(candidate));
        Self { id: id.to_string(), message: message.to_string(), hook, live, candidate, at }
    }
}
