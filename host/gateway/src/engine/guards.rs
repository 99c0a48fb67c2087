//! Limits on asking a connection: circuit breakers and rate limits, which all nodes respect together. A delivery asks
//! its node's memory; only a breaker's changes, its probes, and turns for the next moment of a limited rate use the
//! database. If messages name the endpoint, each origin has a breaker and a pause of its own, on each node. This module
//! neither sends nor chooses another connection.

mod brake;
mod circuit;
mod keeper;
mod origins;
mod pace;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};

pub use self::keeper::{Keeper, breaker_take, look};
use self::{
    brake::Brake,
    circuit::{CLAIM_PAUSE, Circuit, CircuitEntry, SharedBreaker},
    origins::Origins,
    pace::{RatePace, RateTurns, SOON, Turn},
};
use angarium_domain::{
    attempt::Verdict,
    breaker::{BreakerStep, BreakerTally, Cause, Phase, weigh},
    connection::Connection,
    guards::{Guards as Settings, RateLimit},
    ids::{ConnectionId, TenantId},
    routing::SkipReason,
};
use angarium_store::{Store, breaker::StoredBreaker};

/// How long a delivery that only one connection can serve waits for it in memory.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How long a delivery waits for the database's word, at most.
const ANSWER: Duration = Duration::from_secs(1);

/// The furthest that a delivery is put off; then it looks again.
const FURTHEST: Duration = Duration::from_secs(900);

/// The part of a connection's slots that one origin may have at most.
const ORIGINS_PART: usize = 4;

/// Between the deliveries that an open breaker has put off: they do not come back all at once.
const SPREAD: Duration = Duration::from_millis(2);

/// The guards of all connections that this node knows.
pub struct GuardRegistry {
    known: Mutex<Guarded>,
    /// How long a probe may take until it no longer counts.
    probe_lasts: Duration,
    /// How many deliveries may be under way to one origin of a connection.
    most_to_origin: usize,
    reports: mpsc::UnboundedSender<Report>,
    asks: mpsc::UnboundedSender<Arc<Guard>>,
}

#[derive(Default)]
struct Guarded {
    tenants: HashMap<TenantId, HashMap<ConnectionId, Arc<Guard>>>,
    /// Breakers that are not closed, as the database has them, for connections that become known.
    candidate_state: HashMap<ConnectionId, StoredBreaker>,
}

/// A report of the keeper to the other nodes.
enum Report {
    Step {
        guard: Arc<Guard>,
        step: BreakerStep,
    },
    /// The answer is the epoch of the breaker that a delivery may try.
    Claim {
        guard: Arc<Guard>,
        answer: oneshot::Sender<Option<i64>>,
    },
    Pause {
        guard: Arc<Guard>,
        pause: Duration,
    },
}

/// The guard of one connection.
#[derive(Debug)]
pub struct Guard {
    tenant: TenantId,
    connection: ConnectionId,
    provider: String,
    state: Mutex<State>,
    /// The origins that messages name.
    origins: Mutex<Origins>,
    reports: mpsc::UnboundedSender<Report>,
    asks: mpsc::UnboundedSender<Arc<Guard>>,
    /// Its breaker went on.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    circuit: Circuit,
    pace: Option<RatePace>,
    brake: Brake,
    /// The last delivery that was put off, and until when.
    put_off: Instant,
}

/// The reason for which a delivery may not pass, and its earliest end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardRefusal {
    pub skip: SkipReason,
    pub until: Instant,
    /// Only what goes to the same origin is refused.
    of_origin: bool,
}

/// An origin that messages name and that this node leaves alone for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    pub origin: String,
    pub skip: SkipReason,
    pub until: Instant,
    /// The reason in words, if its breaker is open.
    pub detail: String,
}

/// A node's observations of a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    pub phase: Phase,
    pub tally: BreakerTally,
}

impl GuardRegistry {
    /// Returns the guards and their keeper, whose tasks the gateway runs. `slots` is the number of deliveries that may
    /// be under way through a connection; one origin that messages name gets a part of them, so that a slow one leaves
    /// some to others.
    #[must_use]
    pub fn new(store: Store, probe_lasts: Duration, slots: usize) -> (Arc<Self>, Keeper) {
        let (reports, told) = mpsc::unbounded_channel();
        let (asks, asked) = mpsc::unbounded_channel();
        let most_to_origin = slots.div_ceil(ORIGINS_PART);
        let guards = Arc::new(Self { known: Mutex::default(), probe_lasts, most_to_origin, reports, asks });
        let keeper = Keeper::new(store, Arc::clone(&guards), probe_lasts, told, asked);
        (guards, keeper)
    }

    /// Returns the guards of all of a tenant's connections, in order. They outlive changes of configuration; those of
    /// deleted connections are removed.
    pub fn of(&self, tenant: TenantId, connections: &[Connection]) -> Vec<Arc<Guard>> {
        let mut known = self.known();
        let Guarded { tenants, candidate_state } = &mut *known;
        let mut old = tenants.remove(&tenant).unwrap_or_default();
        let now = Instant::now();
        let guards = connections.iter().map(|connection| {
            let guard = old.remove(&connection.id).unwrap_or_else(|| {
                let guard = Arc::new(self.fresh(tenant, connection, now));
                if let Some(stored) = candidate_state.get(&connection.id) {
                    guard.learn(Some(stored), now, now);
                }
                guard
            });
            guard.set(connection.guards, now);
            guard
        });
        let guards: Vec<_> = guards.collect();
        tenants.insert(tenant, guards.iter().map(|guard| (guard.connection, Arc::clone(guard))).collect());
        guards
    }

    /// Returns this node's recent observations of a connection; `None` if it has not asked it yet.
    #[must_use]
    pub fn sight(&self, tenant: TenantId, connection: ConnectionId) -> Option<Sight> {
        let guard = self.known().tenants.get(&tenant)?.get(&connection).map(Arc::clone)?;
        let state = guard.state();
        let tally = state.circuit.tally(&state.settings.breaker, Instant::now());
        Some(Sight { phase: state.circuit.phase(), tally })
    }

    /// The origins that messages name and that this node leaves alone, of a connection; those for longest first.
    #[must_use]
    pub fn left_alone(&self, tenant: TenantId, connection: ConnectionId) -> Vec<LeftAlone> {
        let guard = self.known().tenants.get(&tenant).and_then(|guards| guards.get(&connection)).map(Arc::clone);
        guard.map_or_else(Vec::new, |guard| {
            let policy = guard.settings().breaker;
            guard.origins().left_alone(&policy, Instant::now())
        })
    }

    fn fresh(&self, tenant: TenantId, connection: &Connection, now: Instant) -> Guard {
        Guard {
            tenant,
            connection: connection.id,
            provider: connection.provider.clone(),
            state: Mutex::new(State {
                settings: Settings::default(),
                circuit: Circuit::new(now),
                pace: None,
                brake: Brake::default(),
                put_off: now,
            }),
            origins: Mutex::new(Origins::new(self.most_to_origin, self.probe_lasts, now)),
            reports: self.reports.clone(),
            asks: self.asks.clone(),
            changed: Notify::new(),
        }
    }

    /// Takes over the database's state of all breakers that are not closed or changed lately.
    fn learn(&self, candidate_state: Vec<StoredBreaker>, asked_at: Instant) {
        let now = Instant::now();
        let mut known = self.known();
        known.candidate_state = candidate_state.into_iter().map(|stored| (stored.connection, stored)).collect();
        for guard in known.tenants.values().flat_map(HashMap::values) {
            guard.learn(known.candidate_state.get(&guard.connection), asked_at, now);
        }
    }

    /// How many connections of each provider this node sees closed.
    fn closed(&self) -> HashMap<String, i64> {
        let mut closed = HashMap::new();
        for guard in self.known().tenants.values().flat_map(HashMap::values) {
            let is_closed = guard.state().circuit.phase() == Phase::Closed;
            *closed.entry(guard.provider.clone()).or_default() += i64::from(is_closed);
        }
        closed
    }

    fn known(&self) -> MutexGuard<'_, Guarded> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In all methods, `origin` is that of the endpoint that the message named, if it did.
impl Guard {
    /// Returns the reason for which a delivery with other candidates does not pass now.
    #[must_use]
    pub fn candidate_state(&self, origin: Option<&str>, now: Instant) -> Option<SkipReason> {
        self.refusal(origin, now).map(|refusal| refusal.skip)
    }

    /// When a delivery may go through at the earliest.
    #[must_use]
    pub fn opens_at(&self, origin: Option<&str>, now: Instant) -> Instant {
        self.refusal(origin, now).map_or(now, |refusal| refusal.until)
    }

    fn refusal(&self, origin: Option<&str>, now: Instant) -> Option<GuardRefusal> {
        let (mine, policy) = {
            let mut state = self.state();
            (state.refusal(origin.is_some(), now), state.settings.breaker)
        };
        mine.or_else(|| self.origins().refusal(origin?, &policy, now))
    }

    /// Takes a permit, after a wait of at most `patience`. A refused delivery waits elsewhere.
    ///
    /// # Errors
    /// Returns the reason for which it does not pass by then.
    pub async fn enter(self: &Arc<Self>, origin: Option<&str>, patience: Duration) -> Result<GuardPass, GuardRefusal> {
        let until = Instant::now() + patience.max(SOON);
        let turn = self.turn(origin.is_some(), until).await?;
        match origin {
            Some(origin) => self.enter_origin(origin, until.max(turn)).await,
            None => self.enter_connection(until.max(turn)).await,
        }
    }

    async fn enter_connection(self: &Arc<Self>, until: Instant) -> Result<GuardPass, GuardRefusal> {
        loop {
            let now = Instant::now();
            let (entry, held) = {
                let mut state = self.state();
                let entry = state.entry(false, now);
                if entry == CircuitEntry::Probe {
                    state.circuit.claim();
                }
                let held = if entry == CircuitEntry::Open { state.brake.enter(now).err() } else { None };
                (entry, held)
            };
            match entry {
                CircuitEntry::Open => match held {
                    None => return Ok(self.pass(None, None)),
                    Some(again) if again > until => return Err(GuardRefusal::rate(again)),
                    Some(again) => sleep_until(again).await,
                },
                CircuitEntry::Probe => {
                    if let Some(epoch) = self.claim().await {
                        return Ok(self.pass(None, Some(epoch)));
                    }
                }
                CircuitEntry::Shut(opens) if opens > until => return Err(GuardRefusal::circuit(opens)),
                CircuitEntry::Shut(opens) => {
                    // A breaker that closes notifies its waiters.
                    let _ = tokio::time::timeout_at(opens.into(), self.changed.notified()).await;
                }
            }
        }
    }

    async fn enter_origin(self: &Arc<Self>, origin: &str, until: Instant) -> Result<GuardPass, GuardRefusal> {
        loop {
            let now = Instant::now();
            let policy = self.settings().breaker;
            let entered = self.origins().enter(origin, &policy, now);
            match entered {
                Ok(probe) => return Ok(self.pass(Some(origin), probe)),
                Err(refusal) if refusal.until > until => return Err(refusal),
                Err(refusal) => sleep_until(refusal.until).await,
            }
        }
    }

    /// Postpones a refused delivery: each a step later than the one before it.
    pub fn put_off(&self, origin: Option<&str>, refusal: GuardRefusal) -> Instant {
        let now = Instant::now();
        if let Some(origin) = origin.filter(|_| refusal.of_origin) {
            return self.origins().put_off(origin, refusal.until, now);
        }
        let mut state = self.state();
        let step = match refusal.skip {
            SkipReason::RateLimited => state.pace.as_ref().map_or(SPREAD, |pace| pace.limit().step()),
            _ => SPREAD,
        };
        let at = (state.put_off.max(now) + step).max(refusal.until).min(now + FURTHEST);
        state.put_off = at;
        at
    }

    /// Waits for a turn, if the rate is limited, at most until this time; after that its time is past.
    async fn turn(self: &Arc<Self>, named: bool, until: Instant) -> Result<Instant, GuardRefusal> {
        loop {
            let now = Instant::now();
            let (turn, asks) = {
                let mut state = self.state();
                if let CircuitEntry::Shut(opens) = state.entry(named, now)
                    && opens > until
                {
                    return Err(GuardRefusal::circuit(opens));
                }
                match (state.pause(named, now), &mut state.pace) {
                    (Some(paused), _) => (Turn::Limited(paused), false),
                    (None, None) => return Ok(now),
                    (None, Some(pace)) => {
                        let turn = pace.take(now, until);
                        (turn, pace.asks(now))
                    }
                }
            };
            if asks {
                // Its other end closes only when the node stops.
                let _ = self.asks.send(Arc::clone(self));
            }
            match turn {
                Turn::At(at) => {
                    sleep_until(at).await;
                    return Ok(at);
                }
                Turn::Limited(at) if at > until => return Err(GuardRefusal::rate(at)),
                Turn::Limited(at) => sleep_until(at).await,
                Turn::Asked(answer) => {
                    let patience = until.max(now + ANSWER);
                    match tokio::time::timeout_at(patience.into(), answer).await {
                        Ok(Ok(Ok(at))) => {
                            sleep_until(at).await;
                            return Ok(at);
                        }
                        Ok(Ok(Err(at))) => return Err(GuardRefusal::rate(at)),
                        Ok(Err(_)) | Err(_) => return Err(GuardRefusal::rate(Instant::now() + ANSWER)),
                    }
                }
            }
        }
    }

    /// Asks the other nodes whether this may be a probe; the epoch of the breaker, if so.
    async fn claim(self: &Arc<Self>) -> Option<i64> {
        let mut claiming = Claiming { guard: self, granted: false };
        let (answer, granted) = oneshot::channel();
        self.report(Report::Claim { guard: Arc::clone(self), answer });
        let epoch = tokio::time::timeout(ANSWER, granted).await.ok()?.ok()?;
        claiming.granted = epoch.is_some();
        epoch
    }

    fn pass(self: &Arc<Self>, origin: Option<&str>, probe: Option<i64>) -> GuardPass {
        GuardPass { guard: Arc::clone(self), origin: origin.map(Into::into), probe, told: false }
    }

    fn record(self: &Arc<Self>, verdict: &Verdict, probe: Option<i64>) {
        let now = Instant::now();
        let weight = weigh(verdict);
        let (step, pause) = {
            let mut state = self.state();
            let State { settings, circuit, brake, .. } = &mut *state;
            let step = circuit.record(weight, probe, || told_of(verdict), &settings.breaker, now);
            (step, brake.record(verdict, weight, now))
        };
        if let Some(step) = step {
            self.report(Report::Step { guard: Arc::clone(self), step });
        }
        if let Some(pause) = pause {
            self.report(Report::Pause { guard: Arc::clone(self), pause });
        }
    }

    fn record_origin(&self, origin: &str, verdict: &Verdict, probe: Option<i64>) {
        let policy = self.settings().breaker;
        let changed = self.origins().record(origin, verdict, probe, &policy, Instant::now());
        let (connection, provider) = (self.connection, &self.provider);
        match changed {
            Some(Phase::Open) => tracing::warn!(
                connection.id = %connection, provider.name = provider, endpoint.origin = origin, detail = told_of(verdict),
                "an endpoint that messages name fails: this node leaves it alone for a while"
            ),
            Some(Phase::Closed) => tracing::info!(
                connection.id = %connection, provider.name = provider, endpoint.origin = origin,
                "an endpoint that messages name works again"
            ),
            Some(Phase::HalfOpen) | None => {}
        }
    }

    /// A delivery that was let through was not made; `probe` is the epoch of one that was a probe.
    fn returned(self: &Arc<Self>, origin: Option<&str>, probe: Option<i64>) {
        if let Some(origin) = origin {
            let policy = self.settings().breaker;
            return self.origins().returned(origin, probe, &policy, Instant::now());
        }
        self.state().brake.returned();
        if let Some(epoch) = probe {
            self.report(Report::Step { guard: Arc::clone(self), step: BreakerStep::Returned { epoch } });
        }
    }

    fn report(&self, report: Report) {
        // The keeper ends only when the node stops.
        let _ = self.reports.send(report);
    }

    /// Takes over what its tenant set.
    fn set(&self, settings: Settings, now: Instant) {
        let mut state = self.state();
        if state.settings.breaker.window_ms != settings.breaker.window_ms {
            state.circuit.forget();
        }
        if state.pace.as_ref().map(RatePace::limit) != settings.rate_limit {
            state.pace = settings.rate_limit.map(|limit| RatePace::new(limit, now));
            state.put_off = now;
        }
        state.settings = settings;
    }

    fn settings(&self) -> Settings {
        self.state().settings
    }

    /// Takes over the database's state; `None` means that the breaker is closed.
    fn learn(&self, stored: Option<&StoredBreaker>, asked_at: Instant, now: Instant) {
        let mut state = self.state();
        if let Some(stored) = stored {
            state.brake.learn(stored.paused_until.map(|at| on_this_clock(at, stored, now)).filter(|at| *at > now));
        }
        let known = stored.map(|stored| SharedBreaker {
            phase: stored.breaker.phase,
            epoch: stored.breaker.epoch,
            until: stored.breaker.opened_until.map(|at| on_this_clock(at, stored, now)),
            by_hand: stored.breaker.cause == Some(Cause::Manual),
        });
        if state.circuit.learn(known, asked_at) {
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// How many turns the schedule is asked for, with the limit.
    fn wanted(&self, now: Instant) -> Option<(RateLimit, u32)> {
        let mut state = self.state();
        let pace = state.pace.as_mut()?;
        Some((pace.limit(), pace.wanted(now).max(1)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origins(&self) -> MutexGuard<'_, Origins> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// If the message `named` the endpoint, only a person's decision and the rate limit apply to the connection.
impl State {
    fn entry(&self, named: bool, now: Instant) -> CircuitEntry {
        let policy = &self.settings.breaker;
        if named { self.circuit.entry_by_hand(policy, now) } else { self.circuit.entry(policy, now) }
    }

    fn pause(&self, named: bool, now: Instant) -> Option<Instant> {
        self.brake.until(now).filter(|_| !named)
    }

    fn refusal(&mut self, named: bool, now: Instant) -> Option<GuardRefusal> {
        if let CircuitEntry::Shut(until) = self.entry(named, now) {
            return Some(GuardRefusal::circuit(until));
        }
        let limited = self.pause(named, now).or_else(|| self.pace.as_mut().and_then(|pace| pace.limited(now)));
        limited.map(GuardRefusal::rate)
    }
}

impl GuardRefusal {
    const fn circuit(until: Instant) -> Self {
        Self { skip: SkipReason::CircuitOpen, until, of_origin: false }
    }

    const fn rate(until: Instant) -> Self {
        Self { skip: SkipReason::RateLimited, until, of_origin: false }
    }

    const fn of_origin(self) -> Self {
        Self { of_origin: true, ..self }
    }
}

/// A delivery's permit to use a connection; its holder reports the result.
#[must_use]
pub struct GuardPass {
    guard: Arc<Guard>,
    /// The origin that the message named.
    origin: Option<Box<str>>,
    /// The epoch of the breaker that it tries.
    probe: Option<i64>,
    told: bool,
}

impl GuardPass {
    /// Reports the attempt's result.
    pub fn record(mut self, verdict: &Verdict) {
        self.told = true;
        match &self.origin {
            Some(origin) => self.guard.record_origin(origin, verdict, self.probe),
            None => self.guard.record(verdict, self.probe),
        }
    }
}

impl Drop for GuardPass {
    /// It makes room; where nothing was asked, another delivery may try it.
    fn drop(&mut self) {
        if !self.told {
            self.guard.returned(self.origin.as_deref(), self.probe);
        }
        if let Some(origin) = &self.origin {
            self.guard.origins().left(origin);
        }
    }
}

/// A question whether a delivery may be a probe: however it ends, the next may ask.
struct Claiming<'a> {
    guard: &'a Guard,
    granted: bool,
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.guard.state().circuit.claimed(self.granted, Instant::now());
        self.guard.changed.notify_waiters();
    }
}

/// Returns the reason for the opening that people read.
fn told_of(verdict: &Verdict) -> String {
    let status = verdict.status.map(|status| format!(" {status}")).unwrap_or_default();
    format!("the last answer: {}{status} ({})", verdict.disposition.as_str(), verdict.code)
}

/// A time of the database's clock on this node's.
fn on_this_clock(at: jiff::Timestamp, stored: &StoredBreaker, now: Instant) -> Instant {
    now + Duration::try_from(at.duration_since(stored.now)).unwrap_or_default()
}

async fn sleep_until(at: Instant) {
    if at > Instant::now() {
        tokio::time::sleep_until(at.into()).await;
    }
}
