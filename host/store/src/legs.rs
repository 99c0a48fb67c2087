//! Legs: the deliveries of a message that names a list of channels. `domain/legs.rs` decides about them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{
    Result,
    message::{StoredLegs, parsed},
    queue::{QueueEntry, queue_remove},
    time::micros,
    transition::{Transition, transition_insert},
};
use angarium_domain::{
    attempt::FallbackReason,
    delivery::DeliveryState,
    ids::{DeliveryId, EventId, MessageId, TenantId},
    legs::{Begun, LegPolicy, LegReceipt},
    message::{Message, Priority},
};

/// The messages `$2`, each with the last id that a leg of it may have, as `wanted (id, last)`. Row-level security keeps an
/// index from a bound that a function makes of another table's column; a column of this subquery is none.
pub(super) const WANTED: &str =
    "(select id, angarium_last_leg(id) as last from unnest($2::uuid[]) as given (id) offset 0) as wanted";

/// Messages with several channels of which a delivery has moved: the consequences for the others must be written in the
/// same transaction.
#[derive(Debug, Default)]
#[must_use = "the message's other channels follow in the same transaction: `legs::advance`"]
pub struct LegTransition(BTreeSet<(TenantId, MessageId)>);

impl LegTransition {
    /// Returns one message, as if a delivery of it had moved.
    pub fn one(tenant: TenantId, message: MessageId) -> Self {
        Self(BTreeSet::from([(tenant, message)]))
    }

    /// Whether there is nothing to do, as for all messages with one channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(TenantId, MessageId)> for LegTransition {
    fn from_iter<T: IntoIterator<Item = (TenantId, MessageId)>>(messages: T) -> Self {
        Self(messages.into_iter().collect())
    }
}

/// A message with several channels, held until the transaction's end, with its legs as they stand.
#[derive(Debug)]
pub struct HeldLegs {
    pub tenant: TenantId,
    pub message: MessageId,
    pub priority: Priority,
    pub policy: LegPolicy,
    legs: StoredLegs,
    pub state: Option<DeliveryState>,
    /// Whether another leg could still begin: it has not expired, and its content is there.
    pub may_begin: bool,
    /// In order of their numbers.
    pub begun: Vec<Begun>,
    /// When each of those is due that waits in the queue.
    due: Vec<Option<Timestamp>>,
}

/// Locks messages and reads the states of their legs. No other transaction decides about them meanwhile.
///
/// Locks the message before the rows of several legs are changed, so that no two transactions wait for each other; a
/// settlement, which already holds its own leg, locks it after that.
pub async fn legs_hold(db: &mut PgConnection, moved: &LegTransition) -> Result<Vec<HeldLegs>> {
    let rows = sqlx::query(
        "select m.tenant_id, m.id, m.legs::text as legs, m.priority, m.state,
           m.content_purged_at is null and (m.expires_at is null or m.expires_at > now()) as may_begin
         from unnest($1::uuid[], $2::uuid[]) as wanted (tenant_id, id)
         join message m on m.tenant_id = wanted.tenant_id and m.id = wanted.id
         where m.legs is not null order by m.tenant_id, m.id for no key update of m",
    )
    .bind(moved.0.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(moved.0.iter().map(|(_, message)| message.uuid()).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    let mut held = Vec::with_capacity(rows.len());
    for row in &rows {
        let legs = StoredLegs::from_json(row.try_get("legs")?)?;
        let mut held_legs = HeldLegs {
            tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
            message: row.try_get::<Uuid, _>("id")?.into(),
            priority: Priority::from_rank(row.try_get("priority")?),
            policy: legs.policy(),
            legs,
            state: row.try_get::<Option<&str>, _>("state")?.map(parsed).transpose()?,
            may_begin: row.try_get("may_begin")?,
            begun: Vec::new(),
            due: Vec::new(),
        };
        legs_read(db, &mut held_legs).await?;
        held.push(held_legs);
    }
    Ok(held)
}

/// Holds the messages of these deliveries that have several channels.
pub async fn legs_hold_of(db: &mut PgConnection, tenant: TenantId, deliveries: &[DeliveryId]) -> Result<()> {
    sqlx::query(
        "select 1 from message m where m.tenant_id = $1 and m.legs is not null and m.id in (
           select d.message_id from unnest($2::uuid[]) as wanted (id)
           join delivery d on d.tenant_id = $1 and d.id = wanted.id)
         order by m.id for no key update of m",
    )
    .bind(tenant.uuid())
    .bind(deliveries.iter().map(|it| it.uuid()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Read once the message is locked: earlier commits are visible.
async fn legs_read(db: &mut PgConnection, held_legs: &mut HeldLegs) -> Result<()> {
    let rows = sqlx::query(
        "select d.id, d.state, d.next_attempt_at, d.receipt_until is not null as awaited,
           coalesce(d.receipt_until <= now(), false) as missing,
           exists (select from attempt a where a.tenant_id = d.tenant_id and a.delivery_id = d.id
             and a.number > d.counted_from and a.disposition = 'accepted') as handed_over
         from delivery d where d.tenant_id = $1 and d.id >= $2 and d.id <= angarium_last_leg($2) order by d.id",
    )
    .bind(held_legs.tenant.uuid())
    .bind(held_legs.message.uuid())
    .fetch_all(db)
    .await?;
    for row in &rows {
        held_legs.begun.push(Begun {
            number: DeliveryId::from(row.try_get::<Uuid, _>("id")?).leg_of(held_legs.message),
            state: parsed(row.try_get("state")?)?,
            handed_over: row.try_get("handed_over")?,
            receipt: match (row.try_get("awaited")?, row.try_get("missing")?) {
                (false, _) => LegReceipt::NotAwaited,
                (true, false) => LegReceipt::Awaited,
                (true, true) => LegReceipt::Missing,
            },
        });
        held_legs.due.push(row.try_get::<Option<jiff_sqlx::Timestamp>, _>("next_attempt_at")?.map(|it| it.to_jiff()));
    }
    Ok(())
}

/// Writes the legs that begin with their messages, which were just inserted, and that the further
/// ones begin; those are queued, and the first one where its message is. The messages are found by all of their channels.
pub async fn leg_insert(db: &mut PgConnection, tenant: TenantId, messages: &[&Message]) -> Result<()> {
    let legs = || {
        messages.iter().flat_map(|message| {
            let first = message.legs.policy().at_first();
            first.zip(message.legs.iter()).map(move |(number, leg)| (*message, leg, number))
        })
    };
    let further = || {
        messages.iter().flat_map(|message| {
            let channels = message.legs.iter().map(|leg| &leg.channel);
            channels.filter(|channel| **channel != message.first().channel).map(move |channel| (message.id, channel))
        })
    };
    sqlx::query(
        "with input as (
           select id, message_id, number, channel, priority,
             timestamptz 'epoch' + due_at * interval '1 microsecond' as due_at
           from unnest($2::uuid[], $3::uuid[], $4::smallint[], $5::text[], $6::smallint[], $7::bigint[])
             as t (id, message_id, number, channel, priority, due_at)
         ), begun as (
           insert into delivery (tenant_id, id, message_id, state, attempts, next_attempt_at, trigger, begun_at, updated_at)
           select $1, id, message_id, 'queued', 0, due_at, 'scheduled', due_at, now() from input
         ), queued as (
           insert into queue (tenant_id, delivery_id, due_at, priority)
           select $1, id, due_at, priority from input where number > 0
         ), searched as (
           insert into message_further_channel (tenant_id, message_id, channel)
           select $1, message_id, channel from unnest($8::uuid[], $9::text[]) as t (message_id, channel)
           on conflict do nothing
         )
         insert into transition (tenant_id, delivery_id, state, channel)
         select $1, id, 'queued', channel from input where number > 0",
    )
    .bind(tenant.uuid())
    .bind(legs().map(|(message, _, number)| message.id.leg(number).uuid()).collect::<Vec<_>>())
    .bind(legs().map(|(message, ..)| message.id.uuid()).collect::<Vec<_>>())
    .bind(legs().map(|(.., number)| i16::from(number)).collect::<Vec<_>>())
    .bind(legs().map(|(_, leg, _)| leg.channel.as_str()).collect::<Vec<_>>())
    .bind(legs().map(|(message, ..)| message.priority.rank()).collect::<Vec<_>>())
    .bind(legs().map(|(message, ..)| micros(message.due_at())).collect::<Vec<_>>())
    .bind(further().map(|(message, _)| message.uuid()).collect::<Vec<_>>())
    .bind(further().map(|(_, channel)| channel.as_str()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Begins a leg: it is due now. Written and told of in one statement.
pub async fn leg_begin(db: &mut PgConnection, held_legs: &HeldLegs, number: u8, reason: FallbackReason) -> Result<()> {
    sqlx::query(
        "with begun as (
           insert into delivery (tenant_id, id, message_id, state, attempts, next_attempt_at, trigger, begun_at, begun_by,
             updated_at)
           values ($1, $2, $3, 'queued', 0, now(), 'fallback', now(), $5, now())
         ), queued as (
           insert into queue (tenant_id, delivery_id, due_at, priority) values ($1, $2, now(), $6)
         ), told as (
           insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
           values ($1, $3, $7, $2, 'message.channel_fallback', now(),
             json_build_object('leg', $8::int, 'channel', $4::text, 'reason', $5::text)::text)
         )
         insert into transition (tenant_id, delivery_id, state, channel) values ($1, $2, 'queued', $4)",
    )
    .bind(held_legs.tenant.uuid())
    .bind(held_legs.message.leg(number).uuid())
    .bind(held_legs.message.uuid())
    .bind(held_legs.legs.channel(number))
    .bind(reason.as_str())
    .bind(held_legs.priority.rank())
    .bind(EventId::new().uuid())
    .bind(i32::from(number))
    .execute(db)
    .await?;
    Ok(())
}

/// Why a leg is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Another channel has reached the wanted result.
    Superseded,
    /// A person canceled the message.
    Canceled,
}

impl Closing {
    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Superseded => {
                ("message.channel_superseded", "superseded", "another channel has done what the message wants")
            }
            Self::Canceled => ("message.canceled", "canceled", "it was canceled before it was sent"),
        }
    }
}

/// Ends a leg that waits in the queue; false when it is not there: a worker has it.
pub async fn leg_close(db: &mut PgConnection, held_legs: &mut HeldLegs, number: u8, why: Closing) -> Result<bool> {
    let Some(place) = held_legs.begun.iter().position(|it| it.number == number) else { return Ok(false) };
    let Some(due_at) = held_legs.due[place] else { return Ok(false) };
    let delivery = held_legs.message.leg(number);
    let entry = QueueEntry { tenant: held_legs.tenant, delivery, due_at, priority: held_legs.priority };
    if !queue_remove(db, &entry).await? {
        return Ok(false);
    }
    let (event, code, detail) = why.words();
    let state: String = sqlx::query_scalar(
        "with closed as (
           update delivery set state = angarium_canceled_state(recipients), code = $6, unified_code = $6, detail = $7,
             recipients = angarium_recipients_canceled(recipients), next_attempt_at = null, trigger = null,
             updated_at = now(), finished_at = now()
           where tenant_id = $1 and id = $2
           returning state
         ), told as (
         insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
         values ($1, $3, $4, $2, $5, now(), json_build_object('leg', $8::int, 'code', $6::text)::text)
         )
         select state from closed",
    )
    .bind(held_legs.tenant.uuid())
    .bind(delivery.uuid())
    .bind(held_legs.message.uuid())
    .bind(EventId::new().uuid())
    .bind(event)
    .bind(code)
    .bind(detail)
    .bind(i32::from(number))
    .fetch_one(&mut *db)
    .await?;
    let state = parsed(&state)?;
    // It is this message that is being taken care of.
    let left = DeliveryState::Queued;
    let _ = transition_insert(db, held_legs.tenant, &[Transition { delivery, left, state }]).await?;
    held_legs.begun[place].state = state;
    Ok(true)
}

/// Writes the legs that have not begun as canceled, so that none of them ever will.
pub async fn leg_forgo(db: &mut PgConnection, held_legs: &mut HeldLegs) -> Result<()> {
    let next = held_legs.begun.iter().map(|it| it.number + 1).max().unwrap_or(0);
    let left: Vec<u8> = (next..held_legs.policy.count).collect();
    sqlx::query(
        "with forgone as (
           insert into delivery (tenant_id, id, message_id, state, attempts, code, unified_code, detail, begun_at,
             updated_at, finished_at)
           select $1, id, $2, 'canceled', 0, 'canceled', 'canceled', $5, now(), now(), now()
           from unnest($3::uuid[]) as t (id)
         )
         -- It begins and ends at once.
         insert into transition (tenant_id, delivery_id, state, channel)
         select $1, id, 'canceled', channel from unnest($3::uuid[], $4::text[]) as t (id, channel)",
    )
    .bind(held_legs.tenant.uuid())
    .bind(held_legs.message.uuid())
    .bind(left.iter().map(|number| held_legs.message.leg(*number).uuid()).collect::<Vec<_>>())
    .bind(left.iter().map(|number| held_legs.legs.channel(*number)).collect::<Vec<_>>())
    .bind(Closing::Canceled.words().2)
    .execute(db)
    .await?;
    held_legs.begun.extend(left.into_iter().map(|number| Begun {
        number,
        state: DeliveryState::Canceled,
        handed_over: false,
        receipt: LegReceipt::NotAwaited,
    }));
    held_legs.due.resize(held_legs.begun.len(), None);
    Ok(())
}

/// Writes the combined state of a message's legs, if it has changed.
pub async fn legs_state(db: &mut PgConnection, held_legs: &HeldLegs, state: Option<DeliveryState>) -> Result<()> {
    if state == held_legs.state {
        return Ok(());
    }
    sqlx::query("update message set state = $3 where tenant_id = $1 and id = $2")
        .bind(held_legs.tenant.uuid())
        .bind(held_legs.message.uuid())
        .bind(state.map(DeliveryState::as_str))
        .execute(db)
        .await?;
    Ok(())
}

// ── Receipts that are waited for ──────────────────────────────────────────────────────────────

/// Waits for the receipt of these legs from now on, each for its window, and of no other one.
pub async fn watch_set(db: &mut PgConnection, held_legs: &HeldLegs, numbers: &[u8]) -> Result<()> {
    sqlx::query(
        "with wanted as (
           select id, seconds from unnest($3::uuid[], $4::bigint[]) as t (id, seconds)
         ), over as (
           delete from receipt_watch where tenant_id = $1 and delivery_id >= $2
             and delivery_id <= angarium_last_leg($2) and delivery_id <> all ($3)
         ), begun as (
           update delivery d set receipt_until = now() + seconds * interval '1 second'
           from wanted where d.tenant_id = $1 and d.id = wanted.id and d.receipt_until is null
           returning d.id, d.receipt_until
         )
         insert into receipt_watch (tenant_id, delivery_id, message_id, due_at)
         select $1, id, $2, receipt_until from begun
         on conflict (tenant_id, delivery_id) do update set due_at = excluded.due_at",
    )
    .bind(held_legs.tenant.uuid())
    .bind(held_legs.message.uuid())
    .bind(numbers.iter().map(|number| held_legs.message.leg(*number).uuid()).collect::<Vec<_>>())
    .bind(numbers.iter().map(|number| i64::from(held_legs.legs.receipt_window(*number))).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Returns up to `limit` messages of any tenants whose wait for a receipt is over.
pub async fn watch_due(db: &mut PgConnection, limit: i64) -> Result<Vec<(TenantId, MessageId)>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "select tenant_id, message_id from receipt_watch where due_at <= now() order by due_at limit $1",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(tenant, message)| (tenant.into(), message.into())).collect())
}

/// Takes a message's watches away that are over: also where nothing is left of the message.
pub async fn watch_end(db: &mut PgConnection, tenant: TenantId, message: MessageId) -> Result<()> {
    sqlx::query(
        "delete from receipt_watch where tenant_id = $1 and delivery_id >= $2 and delivery_id <= angarium_last_leg($2)
           and due_at <= now()",
    )
    .bind(tenant.uuid())
    .bind(message.uuid())
    .execute(db)
    .await?;
    Ok(())
}
