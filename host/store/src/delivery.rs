//! Changes of a delivery without an attempt: it waits longer, or a person cancels it, resolves it, or asks for another
//! attempt.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{
    Result,
    attempt::int,
    legs::LegTransition,
    message::parsed,
    time::micros,
    transition::{Transition, transition_insert},
};
use angarium_domain::{
    attempt::Trigger,
    delivery::DeliveryState,
    ids::{DeliveryId, JobId, MessageId, TenantId},
    message::Priority,
};

/// A delivery that goes back to the queue as it came.
#[derive(Debug, Clone)]
pub struct Deferral {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub priority: Priority,
    /// The fencing epoch.
    pub lease: Uuid,
    /// Number of its last attempt.
    pub attempts: u32,
    pub deaths: u32,
    /// Why the next attempt is made.
    pub trigger: Trigger,
    /// How long it waits, on the database's clock.
    pub wait: Duration,
}

/// Puts deliveries back into the queue: no attempt was made, so nothing of their past changes and no
/// event tells of it. The caller holds their leases, and takes them out of these.
///
/// Puts a delivery back. A fresh one has its row from here on, so that readers see when it is due.
pub async fn delivery_defer(db: &mut PgConnection, rows: &[&Deferral]) -> Result<()> {
    sqlx::query(
        "with input as (
           select tenant_id, delivery_id, message_id, priority, attempts, deaths, trigger,
             now() + wait * interval '1 microsecond' as due_at
           from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::smallint[], $5::int[], $6::smallint[], $7::text[],
             $8::bigint[])
             as input (tenant_id, delivery_id, message_id, priority, attempts, deaths, trigger, wait)
         ), waiting as (
           insert into delivery as d (tenant_id, id, message_id, state, attempts, deaths, next_attempt_at, trigger,
             updated_at)
           select tenant_id, delivery_id, message_id, 'queued', attempts, deaths, due_at, trigger, now() from input
           on conflict (tenant_id, id) do update set
             attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at, trigger = excluded.trigger,
             updated_at = excluded.updated_at
           where d.state = 'queued'
           returning tenant_id, id
         )
         insert into queue (tenant_id, delivery_id, due_at, priority)
         select i.tenant_id, i.delivery_id, i.due_at, i.priority
         from input i join waiting w on w.tenant_id = i.tenant_id and w.id = i.delivery_id",
    )
    .bind(rows.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.message.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.priority.rank()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| int(it.attempts)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| i16::try_from(it.deaths).unwrap_or(i16::MAX)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.trigger.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| i64::try_from(it.wait.as_micros()).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a delivery that waits in the queue, and returns its state: `sent` if the mail's main recipient has it and only
/// copies waited. The caller took it out of the queue in this transaction.
pub async fn delivery_cancel(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    delivery: DeliveryId,
) -> Result<Option<(DeliveryState, LegTransition)>> {
    let state: Option<String> = sqlx::query_scalar(
        "insert into delivery as d (tenant_id, id, message_id, state, attempts, updated_at, finished_at)
         values ($1, $2, $3, 'canceled', 0, now(), now())
         on conflict (tenant_id, id) do update set
           state = angarium_canceled_state(d.recipients), recipients = angarium_recipients_canceled(d.recipients),
           next_attempt_at = null, trigger = null, updated_at = now(), finished_at = now()
         where d.state = 'queued'
         returning state",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(message.uuid())
    .fetch_optional(&mut *db)
    .await?;
    let Some(state) = state else { return Ok(None) };
    let state = parsed(&state)?;
    let left = DeliveryState::Queued;
    let moved = transition_insert(db, tenant, &[Transition { delivery, left, state }]).await?;
    Ok(Some((state, moved)))
}

/// A delivery that was opened again.
#[derive(Debug, Clone, Copy)]
pub struct Reopened {
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub priority: Priority,
    /// The state that it left.
    pub left: DeliveryState,
}

/// How deliveries are opened again.
#[derive(Debug, Clone, Copy)]
pub struct Reopening<'a> {
    /// Only those in one of these states; each of them is an end.
    pub from: &'a [DeliveryState],
    /// When they are due.
    pub at: Timestamp,
    /// Whether one that may have been sent goes to the same connection again: its last attempt
    /// then still counts.
    pub keeps_unknown: bool,
    /// Whether expired deliveries, and those without content, are left alone: they could only end again.
    pub only_sendable: bool,
    /// The job that opens them.
    pub replay: Option<JobId>,
}

/// Opens ended deliveries again; earlier attempts no longer count, and a leg starts over. Returns those in a state that
/// allows it. The caller holds their messages, if those have legs ([`super::legs::legs_hold_of`]), puts the deliveries
/// into the queue, and continues the legs.
pub async fn delivery_reopen_all(
    db: &mut PgConnection,
    tenant: TenantId,
    deliveries: &[DeliveryId],
    how: Reopening<'_>,
) -> Result<(Vec<Reopened>, LegTransition)> {
    let rows = sqlx::query(
        "with ended as (
           select d.tenant_id, d.id, d.state, m.priority
           from unnest($2::uuid[]) as wanted (id)
           join delivery d on d.tenant_id = $1 and d.id = wanted.id
           join message m on m.tenant_id = d.tenant_id and m.id = d.message_id
           where d.state = any ($3::text[]) and (not $6 or
             ((m.expires_at is null or m.expires_at > now()) and m.content_purged_at is null))
           -- A purge that goes first is waited for, and seen.
           for update of d for share of m
         )
         update delivery d set state = 'queued', deaths = 0, finished_at = null, trigger = 'manual',
           counted_from = case when $5 and ended.state = 'unknown' then greatest(attempts - 1, 0) else attempts end,
           next_attempt_at = timestamptz 'epoch' + $4 * interval '1 microsecond', updated_at = now(),
           discarded_at = null, discard_reason = null, replay_id = $7,
           begun_at = case when d.begun_at is not null then now() end, receipt_until = null,
           -- Whoever has a copy gets no second one; where it may have been sent, nor does the main recipient.
           recipients = (
             select jsonb_agg(case when r ->> 'role' = 'to' and ended.state <> 'unknown'
               then r || jsonb_build_object('outcome', 'deferred', 'detail', 'it is sent again by hand') else r end)
             from jsonb_array_elements(d.recipients) r
             where r ->> 'outcome' = 'accepted' or (r ->> 'outcome' = 'deferred' and ended.state = 'unknown')
           )
         from ended where d.tenant_id = ended.tenant_id and d.id = ended.id
         returning d.id, d.message_id, ended.priority, ended.state",
    )
    .bind(tenant.uuid())
    .bind(deliveries.iter().map(|it| it.uuid()).collect::<Vec<_>>())
    .bind(how.from.iter().map(|it| it.as_str()).collect::<Vec<_>>())
    .bind(micros(how.at))
    .bind(how.keeps_unknown)
    .bind(how.only_sendable)
    .bind(how.replay.map(JobId::uuid))
    .fetch_all(&mut *db)
    .await?;
    let reopened = rows.iter().map(|row| {
        Ok(Reopened {
            delivery: row.try_get::<Uuid, _>(0)?.into(),
            message: row.try_get::<Uuid, _>(1)?.into(),
            priority: Priority::from_rank(row.try_get(2)?),
            left: parsed(row.try_get(3)?)?,
        })
    });
    let reopened = reopened.collect::<Result<Vec<_>>>()?;
    let again = |it: &Reopened| Transition { delivery: it.delivery, left: it.left, state: DeliveryState::Queued };
    let moved = transition_insert(db, tenant, &reopened.iter().map(again).collect::<Vec<_>>()).await?;
    Ok((reopened, moved))
}

/// Opens one ended delivery for a retry by hand; `None` if its state does not allow it.
pub async fn delivery_reopen(
    db: &mut PgConnection,
    tenant: TenantId,
    delivery: DeliveryId,
    at: Timestamp,
) -> Result<Option<LegTransition>> {
    let from: Vec<_> = DeliveryState::ALL.into_iter().filter(|state| state.may_be_retried()).collect();
    let how = Reopening { from: &from, at, keeps_unknown: false, only_sendable: false, replay: None };
    let (reopened, moved) = delivery_reopen_all(db, tenant, &[delivery], how).await?;
    Ok((!reopened.is_empty()).then_some(moved))
}

/// Moves a waiting delivery that has a row to another time.
pub async fn delivery_reschedule(
    db: &mut PgConnection,
    tenant: TenantId,
    delivery: DeliveryId,
    at: Timestamp,
) -> Result<()> {
    sqlx::query(
        "update delivery set next_attempt_at = at, begun_at = case when begun_at is not null then at end, updated_at = now()
         from (select timestamptz 'epoch' + $3 * interval '1 microsecond' as at) as t
         where tenant_id = $1 and id = $2 and state = 'queued'",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(micros(at))
    .execute(db)
    .await?;
    Ok(())
}

/// A person's knowledge of a delivery without a definite answer.
#[derive(Debug, Clone, Copy)]
pub struct Resolution<'a> {
    pub state: DeliveryState,
    pub reason: &'a str,
    /// The provider's own id for it.
    pub external_id: Option<&'a str>,
}

/// Ends an unknown delivery by a person's decision, and returns its state; `None` if it was in another one. If the
/// mail's main recipient has it and only copies may lack it, it was sent, whatever the person decides about these.
pub async fn delivery_resolve(
    db: &mut PgConnection,
    tenant: TenantId,
    delivery: DeliveryId,
    resolution: Resolution<'_>,
) -> Result<Option<(DeliveryState, LegTransition)>> {
    let state: Option<String> = sqlx::query_scalar(
        "update delivery set state = case when angarium_canceled_state(recipients) = 'sent' then 'sent' else $3 end,
           recipients = angarium_recipients_canceled(recipients), detail = 'resolved by hand: ' || $4,
           external_id = coalesce($5, external_id), updated_at = now(), finished_at = now()
         where tenant_id = $1 and id = $2 and state = 'unknown'
         returning state",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(resolution.state.as_str())
    .bind(resolution.reason)
    .bind(resolution.external_id)
    .fetch_optional(&mut *db)
    .await?;
    let Some(state) = state else { return Ok(None) };
    let state = parsed(&state)?;
    let left = DeliveryState::Unknown;
    let moved = transition_insert(db, tenant, &[Transition { delivery, left, state }]).await?;
    Ok(Some((state, moved)))
}
