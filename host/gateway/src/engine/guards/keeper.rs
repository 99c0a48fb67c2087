//! Keeps the guards of this node and those of the others in step: reports this node's observations, reads the others',
//! and takes turns of limited rates.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Guard, GuardRegistry, RateTurns, Report};
use crate::node::telemetry;
use angarium_domain::{
    breaker::{Breaker, BreakerEffect, BreakerStep, Cause, Phase},
    guards::BreakerPolicy,
    ids::{ConnectionId, TenantId},
};
use angarium_store::{
    self as store, Store,
    breaker::{
        BREAKER_CHANNEL, StoredBreaker, breaker_count, breaker_event_insert, breaker_lock, breaker_pause, breaker_save,
        breaker_standing,
    },
    rate::{RateGrant, RateRequest, rate_take},
};

/// The interval of looks at other nodes' changes, in case a notification is lost.
const LOOK: Duration = Duration::from_secs(1);

/// How long a failing database is left alone.
const PAUSE: Duration = Duration::from_millis(200);

/// The most connections of one question for turns.
const BATCH: usize = 500;

/// The tasks of a node's guards.
pub struct Keeper {
    store: Store,
    guards: Arc<GuardRegistry>,
    /// How long a probe may take until it no longer counts.
    probe_lasts: Duration,
    told: mpsc::UnboundedReceiver<Report>,
    asked: mpsc::UnboundedReceiver<Arc<Guard>>,
}

impl Keeper {
    pub(super) fn new(
        store: Store,
        guards: Arc<GuardRegistry>,
        probe_lasts: Duration,
        told: mpsc::UnboundedReceiver<Report>,
        asked: mpsc::UnboundedReceiver<Arc<Guard>>,
    ) -> Self {
        Self { store, guards, probe_lasts, told, asked }
    }

    /// Keeps the guards until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let Self { store, guards, probe_lasts, told, asked } = self;
        let kept =
            async { tokio::join!(watch(&store, &guards), tell(&store, probe_lasts, told), take_turns(&store, asked)) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = kept => {}
        }
    }

    /// Reads the database's state before the first delivery is dispatched.
    ///
    /// # Errors
    /// When it does not answer; the tasks then ask again.
    pub async fn look(&self) -> store::Result<()> {
        look(&self.store, &self.guards).await
    }
}

/// Reads how the breakers stand.
///
/// # Errors
/// When the database does not answer.
pub async fn look(store: &Store, guards: &GuardRegistry) -> store::Result<()> {
    let asked_at = Instant::now();
    let mut txn = store.worker().await?;
    let candidate_state = breaker_standing(&mut txn).await?;
    drop(txn);
    guards.learn(candidate_state, asked_at);
    Ok(())
}

/// Reads other nodes' changes, by notification or with the next look.
async fn watch(store: &Store, guards: &GuardRegistry) {
    let mut listener = None;
    let mut shown = HashSet::new();
    loop {
        if let Err(error) = watch_once(store, guards, &mut listener, &mut shown).await {
            tracing::warn!(%error, "circuit breakers of other nodes can't be read; this node goes by its own view");
            listener = None;
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn watch_once(
    store: &Store,
    guards: &GuardRegistry,
    listener: &mut Option<store::Listener>,
    shown: &mut HashSet<(String, Phase)>,
) -> store::Result<()> {
    let listener = match listener {
        Some(listener) => listener,
        none => none.insert(store.listen(BREAKER_CHANNEL).await?),
    };
    tokio::select! {
        heard = listener.next() => drop(heard?),
        () = tokio::time::sleep(LOOK) => {}
    }
    look(store, guards).await?;
    let mut txn = store.worker().await?;
    let counts = breaker_count(&mut txn).await?;
    drop(txn);
    show(guards, counts, shown);
    Ok(())
}

/// Updates the gauges of breakers by state; a state shown once continues down to 0.
fn show(guards: &GuardRegistry, counts: Vec<(String, Phase, i64)>, shown: &mut HashSet<(String, Phase)>) {
    let closed = guards.closed().into_iter().map(|(provider, count)| (provider, Phase::Closed, count));
    let mut now: HashMap<(String, Phase), i64> = HashMap::new();
    for (provider, phase, count) in closed.chain(counts) {
        shown.extend(Phase::ALL.map(|phase| (provider.clone(), phase)));
        now.insert((provider, phase), count);
    }
    for (provider, phase) in shown.iter() {
        let count = now.get(&(provider.clone(), *phase)).copied().unwrap_or(0);
        telemetry::breakers(provider, *phase, count);
    }
}

/// Reports this node's observations to the others.
async fn tell(store: &Store, probe_lasts: Duration, mut told: mpsc::UnboundedReceiver<Report>) {
    while let Some(report) = told.recv().await {
        match report {
            Report::Pause { guard, pause } => {
                if let Err(error) = told_pause(store, &guard, pause).await {
                    tracing::warn!(%error, connection.id = %guard.connection, "a pause is not told to other nodes");
                }
            }
            Report::Claim { guard, answer } => {
                let granted = told_step(store, &guard, BreakerStep::Claim { lasts: probe_lasts }).await;
                let granted = granted.unwrap_or_else(|error| {
                    tracing::warn!(%error, connection.id = %guard.connection, "nobody tries it: the database fails");
                    None
                });
                // A delivery that no longer waits for the answer is no probe: another may be.
                if let (Err(_), Some(epoch)) = (answer.send(granted), granted) {
                    insist(store, &guard, BreakerStep::Returned { epoch }).await;
                }
            }
            Report::Step { guard, step } => insist(store, &guard, step).await,
        }
    }
}

/// Repeats a step however long the database is away: meanwhile this node goes by its own observations.
async fn insist(store: &Store, guard: &Guard, step: BreakerStep) {
    loop {
        match told_step(store, guard, step.clone()).await {
            Ok(_) => return,
            Err(error) if error.passes() => {
                tracing::warn!(%error, connection.id = %guard.connection, "a circuit breaker waits for the database");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                guard.state().circuit.told();
                return tracing::error!(%error, connection.id = %guard.connection, "the database refuses a breaker");
            }
        }
    }
}

async fn told_pause(store: &Store, guard: &Guard, pause: Duration) -> store::Result<()> {
    let mut txn = store.worker().await?;
    breaker_pause(&mut txn, guard.tenant, guard.connection, pause).await?;
    txn.commit().await?;
    store.announce_breaker(guard.connection).await
}

/// Takes a step of the shared breaker, announces a new phase, and takes over the result. Returns the epoch that the
/// step was in time for, if it was.
async fn told_step(store: &Store, guard: &Guard, step: BreakerStep) -> store::Result<Option<i64>> {
    let asked_at = Instant::now();
    let policy = guard.settings().breaker;
    let mut txn = store.worker().await?;
    let (stored, effect) = breaker_take(&mut txn, guard.tenant, guard.connection, step, &policy).await?;
    txn.commit().await?;
    guard.state().circuit.told();
    guard.learn(Some(&stored), asked_at, Instant::now());
    if effect == BreakerEffect::Changed {
        report(guard, &stored.breaker);
        if let Err(error) = store.announce_breaker(guard.connection).await {
            tracing::warn!(%error, "a change of a circuit breaker is not announced; other nodes look each second");
        }
    }
    Ok((effect != BreakerEffect::None).then_some(stored.breaker.epoch))
}

/// Takes a step of a breaker within a transaction, with the event of a new phase.
///
/// # Errors
/// When the database does.
pub async fn breaker_take(
    db: &mut store::Connection,
    tenant: TenantId,
    connection: ConnectionId,
    step: BreakerStep,
    policy: &BreakerPolicy,
) -> store::Result<(StoredBreaker, BreakerEffect)> {
    let mut stored = breaker_lock(db, tenant, connection).await?;
    let effect = stored.breaker.take(step, policy, stored.now);
    if effect != BreakerEffect::None {
        breaker_save(db, tenant, connection, &stored.breaker).await?;
    }
    if effect == BreakerEffect::Changed {
        breaker_event_insert(db, tenant, connection, &stored.breaker).await?;
    }
    Ok((stored, effect))
}

fn report(guard: &Guard, breaker: &Breaker) {
    telemetry::breaker_changed(&guard.provider, breaker.phase);
    let (connection, provider, detail) = (guard.connection, &guard.provider, &breaker.detail);
    match (breaker.phase, breaker.cause) {
        (Phase::Open, Some(Cause::AuthFailed)) => tracing::error!(
            connection.id = %connection, provider.name = provider, detail,
            "the provider refuses a connection's credentials: its circuit breaker is open"
        ),
        (Phase::Open, cause) => tracing::warn!(
            connection.id = %connection, provider.name = provider, detail,
            cause = cause.map_or("", |cause| cause.as_str()), "a circuit breaker has opened"
        ),
        (Phase::HalfOpen, _) => tracing::info!(
            connection.id = %connection, provider.name = provider, "a connection is tried again"
        ),
        (Phase::Closed, _) => tracing::info!(
            connection.id = %connection, provider.name = provider, detail, "a circuit breaker has closed"
        ),
    }
}

/// Takes turns of limited rates: one statement for all connections that want some.
async fn take_turns(store: &Store, mut asked: mpsc::UnboundedReceiver<Arc<Guard>>) {
    let mut later: Vec<(Instant, Arc<Guard>)> = Vec::new();
    let mut batch = Vec::new();
    loop {
        let next = later.iter().map(|(at, _)| *at).min();
        tokio::select! {
            count = asked.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = wait_for(next) => {}
        }
        let now = Instant::now();
        batch.extend(later.extract_if(.., |(at, _)| *at <= now).map(|(_, guard)| guard));
        later.extend(ask(store, std::mem::take(&mut batch)).await);
    }
}

async fn wait_for(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Asks for turns; returns the guards to ask again, and when.
async fn ask(store: &Store, guards: Vec<Arc<Guard>>) -> Vec<(Instant, Arc<Guard>)> {
    let now = Instant::now();
    let mut seen = HashSet::new();
    let wanted = guards.into_iter().filter(|guard| seen.insert(guard.connection)).filter_map(|guard| {
        let (limit, turns) = guard.wanted(now)?;
        Some((RateRequest { tenant: guard.tenant, connection: guard.connection, limit, turns }, guard))
    });
    let (wanted, guards): (Vec<_>, Vec<_>) = wanted.unzip();
    if wanted.is_empty() {
        return Vec::new();
    }
    let granted = take(store, &wanted).await;
    // RateTurns are no earlier by this clock than by the database's.
    let now = Instant::now();
    let granted = match granted {
        Ok(granted) => granted,
        Err(error) => {
            tracing::warn!(%error, "limited rates stand still until the database answers");
            guards.iter().for_each(|guard| guard.refused(now));
            return Vec::new();
        }
    };
    let again = wanted.into_iter().zip(guards).zip(granted).filter_map(|((wanted, guard), granted)| {
        let again = guard.granted(turns(&granted, now), wanted.turns, now)?;
        Some((again, guard))
    });
    again.collect()
}

async fn take(store: &Store, wanted: &[RateRequest]) -> store::Result<Vec<RateGrant>> {
    let mut txn = store.worker().await?;
    let granted = rate_take(&mut txn, wanted).await?;
    txn.commit().await?;
    Ok(granted)
}

fn turns(granted: &RateGrant, now: Instant) -> RateTurns {
    let at = |micros: f64| match Duration::try_from_secs_f64(micros.abs() / 1e6) {
        Ok(time) if micros < 0.0 => now.checked_sub(time).unwrap_or(now),
        Ok(time) => now + time,
        Err(_) => now,
    };
    RateTurns { count: granted.turns, first: at(granted.first_micros), next: at(granted.next_micros) }
}

impl Guard {
    fn granted(&self, turns: RateTurns, asked: u32, now: Instant) -> Option<Instant> {
        self.state().pace.as_mut()?.granted(turns, asked, now)
    }

    fn refused(&self, now: Instant) {
        if let Some(pace) = self.state().pace.as_mut() {
            pace.refused(now, now + PAUSE);
        }
    }
}
