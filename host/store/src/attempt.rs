//! Attempts, the deliveries' states that follow from them, and their events: what one settlement
//! commits together.

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    legs::LegTransition,
    message::{corrupt, parsed},
    ordering::ordering_pass,
    time::micros,
};
use angarium_domain::{
    attempt::{Attempt, FallbackReason, Overridden, PastAttempt, Trigger, waits_for_operator},
    delivery::DeliveryState,
    ids::{AttemptId, ConnectionId, DeliveryId, EventId, MessageId, RouteId, TenantId},
    message::Priority,
    provider::{Cost, Disposition},
    recipients::{RecipientOutcome, Recipients},
};

/// An attempt and its consequence.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub channel: String,
    pub priority: Priority,
    /// The fencing epoch.
    pub lease: Uuid,
    pub attempt: Attempt,
    /// The outcome so far for each recipient of a mail with copies; if empty, the recorded outcomes stay.
    pub recipients: Recipients,
    /// `None` while the next candidate is being asked.
    pub state: Option<DeliveryState>,
    /// With [`DeliveryState::Queued`]: the time and the reason of the next attempt. The time counts relative to the
    /// attempt's end: the database's clock says when it is over.
    pub next: Option<(Timestamp, Trigger)>,
    /// Workers that died while they held it.
    pub deaths: u32,
    /// Whether others wait, or may, until it has ended: it has an ordering key.
    pub ordered: bool,
}

impl Settlement {
    /// Whether a turn goes on with it.
    #[must_use]
    pub fn passes_turn(&self) -> bool {
        self.ordered && self.state.is_some_and(DeliveryState::is_end)
    }

    /// Whether the attempt concerned copies alone: the recorded result of the mail itself stays.
    fn concerns_copies(&self) -> bool {
        self.recipients.main_is_served() && !self.attempt.recipients.have_main()
    }

    fn event_type(&self) -> &'static str {
        match self.state {
            None => "message.attempt_failed",
            Some(DeliveryState::Queued) if self.attempt.verdict.disposition == Disposition::Accepted => {
                "message.partially_sent"
            }
            Some(DeliveryState::Queued) => "message.retry_scheduled",
            Some(DeliveryState::Sent) => "message.sent",
            Some(DeliveryState::Delivered) => "message.delivered",
            Some(DeliveryState::Bounced) => "message.bounced",
            Some(DeliveryState::Expired) => "message.expired",
            Some(DeliveryState::Canceled) => "message.canceled",
            Some(DeliveryState::Suppressed) => "message.suppressed",
            Some(DeliveryState::Unroutable) => "message.unroutable",
            Some(DeliveryState::Unknown) => "message.unknown",
            Some(DeliveryState::Failed | DeliveryState::Accepted | DeliveryState::Scheduled) => "message.failed",
        }
    }
}

/// Writes attempts, the states and queue entries that follow, and their events; removes the intents that they answer,
/// and passes on the turns of those that have ended. The caller holds the leases, and has the legs of what moved go on.
pub async fn attempt_settle(db: &mut PgConnection, rows: &[&Settlement]) -> Result<LegTransition> {
    attempt_settle_and_end(db, rows, &[]).await
}

/// Settles as [`attempt_settle`] does, and ends these leases in the same statement: the transaction has the last outcome
/// of each.
pub async fn attempt_settle_and_end(
    db: &mut PgConnection,
    rows: &[&Settlement],
    leases: &[(TenantId, Uuid)],
) -> Result<LegTransition> {
    let attempts = || rows.iter().map(|row| &row.attempt);
    let origins = || rows.iter().map(|row| row.attempt.origin.as_ref());
    let verdicts = || rows.iter().map(|row| &row.attempt.verdict);
    let legs: Vec<Uuid> = sqlx::query_scalar(
        "with input as (
           select tenant_id, delivery_id, message_id, lease_id, channel, priority, id, number, trigger,
             connection_id, provider, provider_version, provider_digest, route_id, route_version, plan,
             timestamptz 'epoch' + started_at * interval '1 microsecond' as started_at,
             timestamptz 'epoch' + finished_at * interval '1 microsecond' as finished_at,
             status, code, unified_code, disposition, detail, external_id, cost_micros, cost_currency, units,
             fallback_reason, plugin_micros, plugin_memory, state, deaths, said, overridden_by,
             attempt_recipients::jsonb as attempt_recipients, recipients::jsonb as recipients, copies, excused,
             -- A wait is counted from here: the node's clock may be another, or have been set.
             now() + (next_at - finished_at) * interval '1 microsecond' as next_at, next_trigger, event_id, event_type
           from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::smallint[], $7::uuid[],
             $8::int[], $9::text[], $10::uuid[], $11::text[], $12::text[], $13::text[], $14::uuid[], $15::int[],
             $16::text[], $17::bigint[], $18::bigint[], $19::int[], $20::text[], $21::text[], $22::text[], $23::text[],
             $24::text[], $25::bigint[], $26::text[], $27::int[], $28::text[], $29::int[], $30::bigint[], $31::text[],
             $32::smallint[], $33::bigint[], $34::text[], $35::uuid[], $36::text[], $37::text[], $38::text[],
             $39::text[], $40::text[], $41::bool[], $42::bool[])
             as input (tenant_id, delivery_id, message_id, lease_id, channel, priority, id, number, trigger,
               connection_id, provider, provider_version, provider_digest, route_id, route_version, plan, started_at,
               finished_at, status, code, unified_code, disposition, detail, external_id, cost_micros, cost_currency,
               units, fallback_reason, plugin_micros, plugin_memory, state, deaths, next_at, next_trigger, event_id,
               event_type, said, overridden_by, attempt_recipients, recipients, copies, excused)
         ), moved as (
           insert into delivery as d (tenant_id, id, message_id, state, attempts, deaths, connection_id, provider,
             external_id, code, unified_code, detail, cost_micros, cost_currency, next_attempt_at, trigger, lease_id,
             updated_at, finished_at, recipients)
           -- Of an attempt for copies alone no code is taken over: by that it is known below.
           select tenant_id, delivery_id, message_id, state, number, deaths, connection_id, provider, external_id,
             case when not copies then code end, unified_code, detail, cost_micros, cost_currency, next_at,
             next_trigger, lease_id, finished_at, case when state <> 'queued' then finished_at end, recipients
           from input where state is not null
           on conflict (tenant_id, id) do update set
             state = excluded.state, attempts = excluded.attempts, deaths = excluded.deaths,
             connection_id = case when excluded.code is null then d.connection_id else excluded.connection_id end,
             provider = case when excluded.code is null then d.provider else excluded.provider end,
             external_id = case when excluded.code is null then d.external_id else excluded.external_id end,
             code = case when excluded.code is null then d.code else excluded.code end,
             unified_code = case when excluded.code is null then d.unified_code else excluded.unified_code end,
             detail = case when excluded.code is null then d.detail else excluded.detail end,
             cost_micros = case when excluded.code is null then d.cost_micros else excluded.cost_micros end,
             cost_currency = case when excluded.code is null then d.cost_currency else excluded.cost_currency end,
             recipients = coalesce(excluded.recipients, d.recipients), next_attempt_at = excluded.next_attempt_at, trigger = excluded.trigger, lease_id = excluded.lease_id,
             updated_at = excluded.updated_at, finished_at = excluded.finished_at
           -- Forward only: an end is never replaced by what an attempt says.
           where d.state = 'queued'
           returning id, begun_at is not null as is_leg
         ), tried as (
           insert into attempt (tenant_id, delivery_id, number, id, trigger, channel, connection_id, provider,
             provider_version, provider_digest, route_id, route_version, plan, started_at, finished_at, status, code,
             unified_code, disposition, detail, external_id, cost_micros, cost_currency, units, fallback_reason,
             plugin_micros, plugin_memory, said, overridden_by, recipients, excused, ended)
           select tenant_id, delivery_id, number, id, trigger, channel, connection_id, provider,
             provider_version, provider_digest, route_id, route_version, plan, started_at, finished_at, status, code,
             unified_code, disposition, detail, external_id, cost_micros, cost_currency, units, fallback_reason,
             plugin_micros, plugin_memory, said, overridden_by, attempt_recipients, excused,
             case when state <> 'queued' and delivery_id in (select id from moved) then state end
           from input
         ), requeued as (
           insert into queue (tenant_id, delivery_id, due_at, priority)
           select tenant_id, delivery_id, next_at, priority from input where next_at is not null
         ), told as (
           insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
           select tenant_id, message_id, event_id, delivery_id, event_type, finished_at,
             json_build_object('attempt', number, 'code', code, 'detail', detail)::text
           from input
         ), answered as (
           -- No join: statistics of a table that is full now and empty then make a loop of loops of it.
           delete from intent where delivery_id = any ($2::uuid[]) and tenant_id = any ($1::uuid[])
         ), done as (
           delete from lease l using unnest($43::uuid[], $44::uuid[]) as done (tenant_id, id)
           where l.tenant_id = done.tenant_id and l.id = done.id
         )
         select id from moved where is_leg",
    )
    .bind(rows.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.message.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.lease).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.channel.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.priority.rank()).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.id.uuid()).collect::<Vec<_>>())
    .bind(attempts().map(|it| int(it.number)).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.trigger.as_str()).collect::<Vec<_>>())
    .bind(origins().map(|it| it.map(|origin| origin.connection.uuid())).collect::<Vec<_>>())
    .bind(origins().map(|it| it.map(|origin| origin.provider.as_ref())).collect::<Vec<Option<&str>>>())
    .bind(origins().map(|it| it.and_then(|origin| origin.provider_version.as_deref())).collect::<Vec<_>>())
    .bind(origins().map(|it| it.and_then(|origin| origin.provider_digest.as_deref())).collect::<Vec<_>>())
    .bind(origins().map(|it| it.and_then(|origin| origin.route).map(|(id, _)| id.uuid())).collect::<Vec<_>>())
    .bind(origins().map(|it| it.and_then(|origin| origin.route).map(|(_, version)| version)).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.plan.as_ref()).collect::<Vec<&str>>())
    .bind(attempts().map(|it| micros(it.started_at)).collect::<Vec<_>>())
    .bind(attempts().map(|it| micros(it.finished_at)).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.status.map(i32::from)).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.code.as_str()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.unified_code.as_str()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.disposition.as_str()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.detail.as_str()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.external_id.as_deref()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.cost.as_ref().map(|cost| cost.micros)).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.cost.as_ref().map(|cost| cost.currency.as_str())).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.units.map(int)).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.fallback_reason.map(|reason| reason.as_str())).collect::<Vec<_>>())
    .bind(attempts().map(|it| int(it.plugin_micros)).collect::<Vec<_>>())
    .bind(attempts().map(|it| i64::try_from(it.plugin_memory).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.state.map(DeliveryState::as_str)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| i16::try_from(it.deaths).unwrap_or(i16::MAX)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.next.map(|(at, _)| micros(at))).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.next.map(|(_, trigger)| trigger.as_str())).collect::<Vec<_>>())
    .bind(rows.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.event_type()).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.overridden.map(|it| it.said.as_str())).collect::<Vec<_>>())
    .bind(verdicts().map(|it| it.overridden.map(|it| it.by.as_str())).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.recipients.as_json()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.recipients.as_json()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.concerns_copies()).collect::<Vec<_>>())
    .bind(attempts().map(|it| it.is_success().is_none()).collect::<Vec<_>>())
    .bind(leases.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(leases.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    recipients_tell(&mut *db, rows).await?;
    let passing: Vec<_> = rows.iter().filter(|it| it.passes_turn()).map(|it| (it.tenant, it.delivery)).collect();
    if !passing.is_empty() {
        ordering_pass(db, &passing).await?;
    }
    let of_leg = |row: &&&Settlement| row.state.is_some() && legs.contains(&row.delivery.uuid());
    Ok(rows.iter().filter(of_leg).map(|row| (row.tenant, row.message)).collect())
}

/// An event for each recipient that was refused for good: rare.
async fn recipients_tell(db: &mut PgConnection, rows: &[&Settlement]) -> Result<()> {
    for row in rows {
        let refused = row.attempt.recipients.iter().filter(|it| it.outcome == RecipientOutcome::Refused);
        for recipient in refused {
            sqlx::query(
                "insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
                 values ($1, $2, $3, $4, 'message.recipient_refused',
                   timestamptz 'epoch' + $5 * interval '1 microsecond',
                   json_build_object('attempt', $6::int, 'recipient', $7::text, 'code', $8::text, 'detail', $9::text)::text)",
            )
            .bind(row.tenant.uuid())
            .bind(row.message.uuid())
            .bind(EventId::new().uuid())
            .bind(row.delivery.uuid())
            .bind(micros(row.attempt.finished_at))
            .bind(int(row.attempt.number))
            .bind(&recipient.address)
            .bind(&recipient.code)
            .bind(&recipient.detail)
            .execute(&mut *db)
            .await?;
        }
    }
    Ok(())
}

pub(super) fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A request that is about to begin at a provider that can't recognise a repetition.
#[derive(Debug, Clone)]
pub struct NewIntent {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub lease: Uuid,
    pub number: u32,
    pub connection: ConnectionId,
    pub provider: String,
    pub hold: bool,
    pub trigger: Trigger,
    pub started_at: Timestamp,
}

/// Commits to requests before their first byte. The caller holds the leases.
pub async fn intent_insert(db: &mut PgConnection, intents: &[&NewIntent]) -> Result<()> {
    sqlx::query(
        "insert into intent (tenant_id, delivery_id, number, connection_id, provider, on_unknown, trigger, started_at)
         select tenant_id, delivery_id, number, connection_id, provider, case when hold then 'hold' else 'retry' end,
           trigger, timestamptz 'epoch' + started_at * interval '1 microsecond'
         from unnest($1::uuid[], $2::uuid[], $3::int[], $4::uuid[], $5::text[], $6::bool[], $7::text[], $8::bigint[])
           as t (tenant_id, delivery_id, number, connection_id, provider, hold, trigger, started_at)
         on conflict (tenant_id, delivery_id) do update set
           number = excluded.number, connection_id = excluded.connection_id, provider = excluded.provider,
           on_unknown = excluded.on_unknown, trigger = excluded.trigger, started_at = excluded.started_at",
    )
    .bind(intents.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| int(it.number)).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| it.connection.uuid()).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| it.provider.as_str()).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| it.hold).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| it.trigger.as_str()).collect::<Vec<_>>())
    .bind(intents.iter().map(|it| micros(it.started_at)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// The past of a claimed delivery.
#[derive(Debug, Clone)]
pub struct Past {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    /// The time and the reason of its beginning, if it is one of several legs.
    pub begun_at: Option<Timestamp>,
    pub begun_by: Option<FallbackReason>,
    /// Number of the last attempt.
    pub attempts: u32,
    pub deaths: u32,
    pub state: DeliveryState,
    /// Why the next attempt is made.
    pub trigger: Option<String>,
    /// When it is due.
    pub next_attempt_at: Option<Timestamp>,
    /// The attempts that count, oldest first.
    pub counted: Vec<PastAttempt>,
    /// The outcome so far for each recipient of a mail with copies.
    pub recipients: Recipients,
}

/// The past of those deliveries that have one.
pub async fn past_load(db: &mut PgConnection, ids: &[(TenantId, DeliveryId)]) -> Result<Vec<Past>> {
    let rows = sqlx::query(
        "select d.tenant_id, d.id, d.message_id, d.begun_at, d.begun_by, d.attempts, d.deaths, d.state,
           d.trigger as next_trigger, d.next_attempt_at, d.recipients::text as recipients, a.connection_id,
           a.disposition, a.code, a.trigger, a.started_at
         from unnest($1::uuid[], $2::uuid[]) as wanted (tenant_id, id)
         join delivery d on d.tenant_id = wanted.tenant_id and d.id = wanted.id
         left join attempt a on a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.number > d.counted_from
         order by d.tenant_id, d.id, a.number",
    )
    .bind(ids.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(ids.iter().map(|(_, id)| id.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let mut pasts: Vec<Past> = Vec::new();
    for row in &rows {
        let delivery: DeliveryId = row.try_get::<Uuid, _>("id")?.into();
        if pasts.last().is_none_or(|past| past.delivery != delivery) {
            pasts.push(Past {
                tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
                delivery,
                message: row.try_get::<Uuid, _>("message_id")?.into(),
                begun_at: row.try_get::<Option<jiff_sqlx::Timestamp>, _>("begun_at")?.map(|it| it.to_jiff()),
                begun_by: row.try_get::<Option<&str>, _>("begun_by")?.map(begun_by),
                attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
                deaths: u32::from(row.try_get::<i16, _>("deaths")?.unsigned_abs()),
                state: parsed(row.try_get::<&str, _>("state")?)?,
                trigger: row.try_get("next_trigger")?,
                next_attempt_at: row
                    .try_get::<Option<jiff_sqlx::Timestamp>, _>("next_attempt_at")?
                    .map(|it| it.to_jiff()),
                counted: Vec::new(),
                recipients: recipients(row)?,
            });
        }
        if let (Some(past), Some(disposition)) = (pasts.last_mut(), row.try_get::<Option<&str>, _>("disposition")?) {
            let trigger = parsed(row.try_get::<&str, _>("trigger")?)?;
            let (disposition, code) = (parsed(disposition)?, row.try_get::<Option<&str>, _>("code")?);
            close_round_before(&mut past.counted, trigger);
            past.counted.push(PastAttempt {
                connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(Into::into),
                disposition,
                waits_for_operator: waits_for_operator(disposition, code.unwrap_or_default()),
                trigger,
                started_at: row.try_get::<jiff_sqlx::Timestamp, _>("started_at")?.to_jiff(),
                round_closed: true,
            });
        }
    }
    // A delivery that was put back within a round continues it.
    for past in &mut pasts {
        if let Some(next) = past.trigger.as_deref() {
            close_round_before(&mut past.counted, parsed(next)?);
        }
    }
    Ok(pasts)
}

fn recipients(row: &PgRow) -> Result<Recipients> {
    parsed_recipients(row.try_get("recipients")?)
}

/// Recipients as the database keeps them.
pub(super) fn parsed_recipients(json: Option<&str>) -> Result<Recipients> {
    match json {
        None => Ok(Recipients::default()),
        Some(json) => serde_json::from_str(json).map_err(corrupt),
    }
}

fn begun_by(word: &str) -> FallbackReason {
    match word {
        "no_receipt" => FallbackReason::NoReceipt,
        _ => FallbackReason::ChannelFailed,
    }
}

/// A fallback belongs to the round of the attempt before it.
fn close_round_before(counted: &mut [PastAttempt], trigger: Trigger) {
    if let Some(last) = counted.last_mut() {
        last.round_closed = trigger != Trigger::Fallback;
    }
}

/// An attempt as the API shows it.
#[derive(Debug, Clone)]
pub struct AttemptView {
    pub id: AttemptId,
    pub delivery: DeliveryId,
    pub number: u32,
    pub trigger: String,
    pub channel: String,
    pub connection: Option<ConnectionId>,
    pub connection_uid: Option<String>,
    pub provider: Option<String>,
    pub provider_version: Option<String>,
    pub provider_digest: Option<String>,
    pub route: Option<RouteId>,
    pub route_version: Option<i32>,
    /// JSON of the plan it followed.
    pub plan: Option<String>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub status: Option<i32>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub disposition: Disposition,
    pub overridden: Option<Overridden>,
    pub detail: Option<String>,
    pub external_id: Option<String>,
    pub cost: Option<Cost>,
    pub units: Option<i32>,
    pub fallback_reason: Option<String>,
    /// Time in the plugin, microseconds.
    pub plugin_micros: Option<i32>,
    /// Peak memory of the plugin, bytes.
    pub plugin_memory: Option<i64>,
    pub recipients: Recipients,
}

/// Every attempt of a delivery, oldest first.
pub async fn attempt_list(db: &mut PgConnection, tenant: TenantId, delivery: DeliveryId) -> Result<Vec<AttemptView>> {
    attempts_between(db, tenant, delivery, delivery).await
}

/// Every attempt of a message by all of its channels, oldest first.
pub async fn attempt_list_all(db: &mut PgConnection, tenant: TenantId, message: MessageId) -> Result<Vec<AttemptView>> {
    attempts_between(db, tenant, message.first_delivery(), message.leg(u8::MAX)).await
}

async fn attempts_between(
    db: &mut PgConnection,
    tenant: TenantId,
    first: DeliveryId,
    last: DeliveryId,
) -> Result<Vec<AttemptView>> {
    let rows = sqlx::query(
        "select a.*, a.recipients::text as recipients_text, c.uid as connection_uid from attempt a
         left join connection c on c.tenant_id = a.tenant_id and c.id = a.connection_id
         where a.tenant_id = $1 and a.delivery_id >= $2 and a.delivery_id <= $3
         order by a.started_at, a.delivery_id, a.number",
    )
    .bind(tenant.uuid())
    .bind(first.uuid())
    .bind(last.uuid())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            let cost =
                row.try_get::<Option<i64>, _>("cost_micros")?.zip(row.try_get::<Option<String>, _>("cost_currency")?);
            Ok(AttemptView {
                id: row.try_get::<Uuid, _>("id")?.into(),
                delivery: row.try_get::<Uuid, _>("delivery_id")?.into(),
                number: row.try_get::<i32, _>("number")?.unsigned_abs(),
                trigger: row.try_get("trigger")?,
                channel: row.try_get("channel")?,
                connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(Into::into),
                connection_uid: row.try_get("connection_uid")?,
                provider: row.try_get("provider")?,
                provider_version: row.try_get("provider_version")?,
                provider_digest: row.try_get("provider_digest")?,
                route: row.try_get::<Option<Uuid>, _>("route_id")?.map(Into::into),
                route_version: row.try_get("route_version")?,
                plan: row.try_get("plan")?,
                started_at: row.try_get::<jiff_sqlx::Timestamp, _>("started_at")?.to_jiff(),
                finished_at: row.try_get::<jiff_sqlx::Timestamp, _>("finished_at")?.to_jiff(),
                status: row.try_get("status")?,
                code: row.try_get("code")?,
                unified_code: row.try_get("unified_code")?,
                disposition: parsed(row.try_get::<&str, _>("disposition")?)?,
                overridden: overridden(row)?,
                detail: row.try_get("detail")?,
                external_id: row.try_get("external_id")?,
                cost: cost.map(|(micros, currency)| Cost { micros, currency }),
                units: row.try_get("units")?,
                fallback_reason: row.try_get("fallback_reason")?,
                plugin_micros: row.try_get("plugin_micros")?,
                plugin_memory: row.try_get("plugin_memory")?,
                recipients: parsed_recipients(row.try_get("recipients_text")?)?,
            })
        })
        .collect()
}

fn overridden(row: &PgRow) -> Result<Option<Overridden>> {
    let said = row.try_get::<Option<&str>, _>("said")?.map(parsed).transpose()?;
    let by = row.try_get::<Option<&str>, _>("overridden_by")?.map(parsed).transpose()?;
    Ok(said.zip(by).map(|(said, by)| Overridden { said, by }))
}
