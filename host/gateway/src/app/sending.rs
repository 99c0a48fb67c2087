//! Sending: a client's messages pass admission, one or many, in earnest or as a dry run.

use super::App;
use crate::node::telemetry::Side;
use angarium_domain::{
    ids::{BatchId, TenantId},
    trace::TraceContext,
};

pub use crate::engine::{
    admission::{AdmitError, Admitted, Answers, MessageSource, ParseContext, RequestOrigin, Unparsed},
    dispatch::{LegPreview, Preview, PreviewRequest},
    planning::Planned,
};

/// Accepts one message.
///
/// # Errors
/// With the reason for which it was not accepted.
pub async fn send<M: MessageSource>(
    app: &App,
    tenant: TenantId,
    message: M,
    trace: Option<&TraceContext>,
) -> Result<Admitted, AdmitError> {
    let mut span = app.tracer.child("accept", Side::Internal, trace);
    let origin = RequestOrigin { batch: None, trace: span.context().cloned() };
    let answer = app.admission.admit(tenant, vec![message], origin).await?.pop();
    let admitted = answer.unwrap_or(Err(AdmitError::Unavailable))?;
    span.set(|| {
        [
            ("tenant.id", tenant.to_string().into()),
            ("message.id", admitted.message.id.to_string().into()),
            ("message.replayed", admitted.replayed.into()),
        ]
    });
    Ok(admitted)
}

/// Accepts messages that came together; one answer for each, in order. The batch finds them: where all of them were
/// known by their keys, it is the one that they came in with.
///
/// # Errors
/// When the tenant's configuration can't be read; nothing was accepted.
pub async fn send_batch<M: MessageSource>(
    app: &App,
    tenant: TenantId,
    messages: Vec<M>,
    trace: Option<&TraceContext>,
) -> Result<(BatchId, Answers), AdmitError> {
    let mut span = app.tracer.child("accept", Side::Internal, trace);
    span.set(|| [("tenant.id", tenant.to_string().into()), ("messages", (messages.len() as i64).into())]);
    let batch = BatchId::new();
    let origin = RequestOrigin { batch: Some(batch), trace: span.context().cloned() };
    let answers = app.admission.admit(tenant, messages, origin).await?;
    Ok((first_batch(&answers).unwrap_or(batch), answers))
}

/// Returns the batch of messages that all were accepted before; `None` if one was accepted now.
fn first_batch(answers: &Answers) -> Option<BatchId> {
    let mut accepted = answers.iter().flatten();
    accepted.clone().all(|it| it.replayed).then(|| accepted.find_map(|it| it.message.batch)).flatten()
}

/// Leads one message through the stages up to the commit, and shows the requests that would leave.
///
/// # Errors
/// With the reason for which it would not be accepted.
pub async fn dry_run<M: MessageSource>(
    app: &App,
    tenant: TenantId,
    message: M,
) -> Result<(Preview, Vec<LegPreview>), AdmitError> {
    let rehearsed = app.admission.rehearse(tenant, message).await?;
    Ok(app.dispatcher.preview(tenant, &rehearsed.new).await?)
}
