//! Random schedules of answers, losses, late writes, cancels, retries by hand and time, through the model and through
//! the real store, routing, outcome and recovery; after each step both must say the same.

use std::{collections::HashMap, sync::Arc, time::Duration};

use angarium::{
    app::{
        self, Principal,
        change::Changes,
        error::UseCaseError,
        message_actions::{MessageActions, MessageView},
    },
    clock,
    engine::recovery,
};
use angarium_domain::{
    attempt::{Attempt, Origin, PastAttempt, Trigger},
    audit::Actor,
    delivery::DeliveryState,
    ids::{AttemptId, ConnectionId, MessageId, TenantId},
    legs::Leg,
    message::{Body, Message, NewMessage, Priority},
    outcome::{self, Copies, Outcome, RetryInput, host_verdict},
    provider::Disposition,
    recipients::Recipients,
    retry::RetryPolicy,
    route::{Candidate, OnUnknown, RouteSpec},
    routing::{self, CandidateState, Facts, PlanInput},
};
use angarium_store::{
    attempt::{NewIntent, Settlement, attempt_list, attempt_settle, intent_insert, past_load},
    delivery::{Deferral, delivery_defer},
    message::{BirthLease, MessageRow, message_get, message_insert},
    queue::{NewLease, lease_delete, lease_hold, lease_insert, lease_release},
};
use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::Notify;
use uuid::Uuid;

use super::model::{Model, Next, Place, Rules};
use crate::support::{
    database::{Database, claim_due},
    seed,
};

/// Schedules at a time, each lane on a database of its own.
const LANES: u64 = 4;
const SCHEDULES: u64 = 200;
const STEPS: usize = 24;

const ANSWERS: [Disposition; 7] = [
    Disposition::Accepted,
    Disposition::RejectedPermanent,
    Disposition::RejectedTransient,
    Disposition::Throttled,
    Disposition::AuthFailed,
    Disposition::NotSent,
    Disposition::Unknown,
];

/// A delivery that a worker holds.
#[derive(Debug, Clone)]
struct Work {
    lease: Uuid,
    past: Vec<PastAttempt>,
    attempts: u32,
    deaths: u32,
    trigger: Trigger,
}

/// The real thing: one delivery in a database, beside one of the same lease that keeps the lease's row alive.
struct Real<'a> {
    db: &'a Database,
    /// The superuser's way, past row-level security.
    direct: &'a mut PgConnection,
    tenant: TenantId,
    spec: RouteSpec,
    message: MessageId,
    work: Option<Work>,
    /// Workers that have lost their leases and do not know it.
    sleepers: Vec<Work>,
    log: Vec<String>,
}

impl Real<'_> {
    fn connection(&self, candidate: usize) -> ConnectionId {
        self.spec.candidates[candidate].connection
    }

    fn plan(&self, past: &[PastAttempt]) -> Option<usize> {
        let standings: Vec<_> = self
            .spec
            .candidates
            .iter()
            .map(|it| CandidateState { connection: it.connection, skip: None, facts: Facts::default() })
            .collect();
        let plan = routing::plan(&self.spec, &standings, &PlanInput { past, first: None, turn: 0, chance: 0.0 });
        let first = plan.candidates.first()?.connection;
        self.spec.candidates.iter().position(|it| it.connection == first)
    }

    async fn claim(&mut self) {
        let mut txn = self.db.store.worker().await.unwrap();
        let claimed = claim_due(&mut txn, 10).await;
        let [(tenant, delivery)] = claimed[..] else { panic!("claimed {claimed:?}") };
        assert_eq!((tenant, delivery), (self.tenant, self.message.first_delivery()));
        let past = past_load(&mut txn, &claimed).await.unwrap().pop();
        let attempts = past.as_ref().map_or(0, |past| past.attempts);
        // Another delivery of the lease, which its worker never finishes.
        let sibling = MessageId::new().first_delivery();
        let lease = NewLease { tenant, id: Uuid::now_v7(), deliveries: vec![(delivery, attempts), (sibling, 0)] };
        self.work = Some(Work {
            lease: lease.id,
            attempts,
            deaths: past.as_ref().map_or(0, |past| past.deaths),
            trigger: past.as_ref().map_or(Trigger::Scheduled, |past| {
                past.trigger.as_deref().map_or(Trigger::Retry, |text| text.parse().unwrap())
            }),
            past: past.map(|past| past.counted).unwrap_or_default(),
        });
        lease_insert(&mut txn, Uuid::now_v7(), Duration::from_secs(600), &[lease]).await.unwrap();
        txn.commit().await.unwrap();
    }

    /// Commits to the request, as `dispatch` does.
    async fn intend(&self, candidate: usize, hold: bool) {
        let work = self.work.as_ref().unwrap();
        let intent = NewIntent {
            tenant: self.tenant,
            delivery: self.message.first_delivery(),
            lease: work.lease,
            number: work.attempts + 1,
            connection: self.connection(candidate),
            provider: "fixture".into(),
            hold,
            trigger: work.trigger,
            started_at: clock::now(),
        };
        let mut txn = self.db.store.worker().await.unwrap();
        intent_insert(&mut txn, &[&intent]).await.unwrap();
        txn.commit().await.unwrap();
    }

    /// Decides and settles an answer, as `dispatch` and `ledger` do.
    async fn answer(
        &mut self,
        candidate: usize,
        disposition: Disposition,
        on_unknown: OnUnknown,
        keep_lease: bool,
    ) -> Outcome {
        let mut work = self.work.take().unwrap();
        let connection = self.connection(candidate);
        work.past.push(PastAttempt {
            connection: Some(connection),
            disposition,
            waits_for_operator: false,
            trigger: work.trigger,
            started_at: clock::now(),
            round_closed: false,
        });
        let another = self.spec.fallback && self.plan(&work.past).is_some();
        work.past.last_mut().unwrap().round_closed = true;
        let again = self.plan(&work.past).is_some();
        let now = clock::now();
        let verdict = host_verdict(disposition, "test", String::new());
        let outcome = outcome::decide(
            &verdict,
            &RetryInput {
                policy: &self.spec.retry,
                on_unknown,
                another_candidate: another,
                another_in_turn: false,
                past: &work.past,
                may_ask_again: again,
                copies: Copies::None,
                first_due: now,
                expires_at: None,
                limits: self.spec.retry.limits(),
                now,
                chance: 0.0,
            },
        );
        let outcome = outcome.by_policy.outcome;
        let settlement = self.settlement(&work, candidate, verdict, &outcome);
        assert!(self.settle(&settlement).await, "a worker in possession of its lease can write");
        match outcome {
            Outcome::FallBack(_) => {
                work.past.last_mut().unwrap().round_closed = false;
                work.attempts += 1;
                work.trigger = Trigger::Fallback;
                self.work = Some(work);
            }
            Outcome::Sent | Outcome::Retry(_) | Outcome::End(_) if keep_lease => {}
            Outcome::Sent | Outcome::Retry(_) | Outcome::End(_) => {
                let mut txn = self.db.store.worker().await.unwrap();
                lease_delete(&mut txn, &[(self.tenant, work.lease)]).await.unwrap();
                txn.commit().await.unwrap();
            }
        }
        outcome
    }

    /// Puts it back as it came, as `ledger` does.
    async fn put_off(&mut self, keep_lease: bool) {
        let work = self.work.take().unwrap();
        let delivery = self.message.first_delivery();
        let deferral = Deferral {
            tenant: self.tenant,
            delivery,
            message: self.message,
            priority: Priority::Normal,
            lease: work.lease,
            attempts: work.attempts,
            deaths: work.deaths,
            trigger: work.trigger,
            wait: Duration::from_secs(3600),
        };
        let lease = (self.tenant, work.lease);
        let mut txn = self.db.store.worker().await.unwrap();
        assert!(lease_hold(&mut txn, &[lease]).await.unwrap().leases.contains(&work.lease));
        delivery_defer(&mut txn, &[&deferral]).await.unwrap();
        match keep_lease {
            true => lease_release(&mut txn, &[(self.tenant, work.lease, delivery)]).await.unwrap(),
            false => lease_delete(&mut txn, &[lease]).await.unwrap(),
        }
        txn.commit().await.unwrap();
    }

    fn settlement(
        &self,
        work: &Work,
        candidate: usize,
        verdict: angarium_domain::attempt::Verdict,
        outcome: &Outcome,
    ) -> Settlement {
        let now = clock::now();
        Settlement {
            tenant: self.tenant,
            delivery: self.message.first_delivery(),
            message: self.message,
            channel: "webhook".into(),
            priority: Priority::Normal,
            lease: work.lease,
            attempt: Attempt {
                id: AttemptId::new(),
                number: work.attempts + 1,
                trigger: work.trigger,
                origin: Some(Origin {
                    connection: self.connection(candidate),
                    provider: "fixture".into(),
                    provider_version: None,
                    provider_digest: None,
                    route: None,
                    at_recipient: false,
                }),
                plan: Arc::from("{}"),
                started_at: now,
                finished_at: now,
                verdict,
                fallback_reason: None,
                plugin_micros: 0,
                plugin_memory: 0,
                recipients: Recipients::default(),
                further: false,
            },
            recipients: Recipients::default(),
            state: outcome.state(),
            next: match outcome {
                Outcome::Retry(at) => Some((*at, Trigger::Retry)),
                Outcome::Sent | Outcome::FallBack(_) | Outcome::End(_) => None,
            },
            deaths: work.deaths,
            ordered: false,
        }
    }

    /// Writes it if its lease still holds; returns whether it did.
    async fn settle(&self, settlement: &Settlement) -> bool {
        let mut txn = self.db.store.worker().await.unwrap();
        let held = lease_hold(&mut txn, &[(self.tenant, settlement.lease)]).await.unwrap();
        let stands = held.leases.contains(&settlement.lease);
        if stands {
            let _ = attempt_settle(&mut txn, &[settlement]).await.unwrap();
        }
        txn.commit().await.unwrap();
        stands
    }

    /// A worker that slept wakes up and says that it was sent.
    async fn late_write(&self, sleeper: &Work) -> bool {
        let verdict = host_verdict(Disposition::Accepted, "late", String::new());
        self.settle(&self.settlement(sleeper, 0, verdict, &Outcome::Sent)).await
    }

    /// Ends all leases but the present worker's, and has them recovered.
    async fn recover(&mut self) {
        let kept = self.work.as_ref().map_or_else(Uuid::nil, |work| work.lease);
        run(self.direct, &format!("update lease set expires_at = now() - interval '1 s' where id <> '{kept}'")).await;
        recovery::recover(&self.db.store).await.unwrap();
    }

    async fn come_due(&mut self) {
        run(self.direct, "update queue set due_at = now()").await;
        let both =
            "update delivery set next_attempt_at = due_at from queue where delivery_id = id and state = 'queued'";
        run(self.direct, both).await;
    }

    async fn compare(&mut self, model: &Model) -> Result<(), String> {
        let mut txn = self.db.store.tenant(self.tenant).await.unwrap();
        let view = message_get(&mut txn, self.tenant, self.message).await.unwrap().unwrap();
        let attempts = attempt_list(&mut txn, self.tenant, self.message.first_delivery()).await.unwrap();
        drop(txn);
        let asked = |it: Option<ConnectionId>| {
            it.map(|it| self.spec.candidates.iter().position(|c| c.connection == it).unwrap())
        };
        let attempts: Vec<_> = attempts.iter().map(|it| (asked(it.connection), it.disposition)).collect();
        let id = self.message.uuid();
        let lease = self.work.as_ref().map_or_else(Uuid::nil, |work| work.lease);
        let sql = format!(
            "select array[(select count(*) from queue where delivery_id = '{id}'),
               (select count(*) from queue where delivery_id = '{id}' and due_at <= now()),
               (select coalesce(max(deaths), 0) from delivery where id = '{id}'),
               (select count(*) from intent where delivery_id = '{id}'),
               (select count(*) from lease where id = '{lease}'),
               -- What attempts and transitions say of its end is what it came to.
               (select count(*) from (
                 select state from (
                   select ended as state, 1 as n from attempt where delivery_id = '{id}' and ended is not null
                   union all select state, 1 from transition where delivery_id = '{id}'
                   union all select left_state, -1 from transition where delivery_id = '{id}'
                   union all select state, -1 from delivery where id = '{id}'
                 ) as changes where state <> 'queued' group by state having sum(n) <> 0) as wrong)]"
        );
        let rows: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *self.direct).await.unwrap();
        let in_queue = matches!(model.place, Place::Queue { .. });
        let expected = vec![
            i64::from(in_queue),
            i64::from(model.place == Place::Queue { due: true }),
            i64::from(model.deaths),
            i64::from(model.intent.is_some()),
            i64::from(model.place == Place::Worker),
            0,
        ];
        let real = (view.delivery.state, attempts, rows);
        let wanted = (model.state(), model.attempts.clone(), expected);
        if real == wanted { Ok(()) } else { Err(format!("the model says {wanted:?}, the database {real:?}")) }
    }
}

fn random_spec(rng: &mut Rng) -> RouteSpec {
    let candidates = (0..rng.usize(1..=3)).map(|_| Candidate::new(ConnectionId::new())).collect::<Vec<_>>();
    let hour = 3_600_000;
    RouteSpec {
        retry: match rng.u8(0..4) {
            0 => RetryPolicy::None,
            1 => RetryPolicy::schedule(vec![hour; rng.usize(0..3)]),
            _ => RetryPolicy::linear(hour, rng.u32(1..5)),
        },
        fallback: rng.u8(0..4) > 0,
        on_unknown: [None, Some(OnUnknown::Retry), Some(OnUnknown::Hold)][rng.usize(0..3)],
        candidates,
        ..RouteSpec::pinned(ConnectionId::new())
    }
}

async fn accept(db: &Database, tenant: TenantId, queued: bool) -> (MessageId, Option<Work>) {
    let leg = Leg::on("webhook".parse().unwrap());
    let message = Message { created_at: clock::now(), ..Message::with(leg, Body::default()) };
    let new = NewMessage { message, idempotency: None, attachments: vec![], rule_input: None };
    let lease = BirthLease { id: Uuid::now_v7(), node: Uuid::now_v7(), length_ms: 600_000 };
    let mut txn = db.store.tenant(tenant).await.unwrap();
    message_insert(
        &mut txn,
        tenant,
        &[MessageRow { new: &new, json: b"{}", excerpt: None, queued: Some(queued) }],
        lease,
    )
    .await
    .unwrap();
    txn.commit().await.unwrap();
    let work = Work { lease: lease.id, past: vec![], attempts: 0, deaths: 0, trigger: Trigger::Scheduled };
    (new.message.id, (!queued).then_some(work))
}

async fn run(direct: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(direct).await.unwrap();
}

/// How often each end was seen.
type Ends = HashMap<DeliveryState, usize>;

/// Every so manieth schedule, on a database of its own; what differed, with the steps that led there.
async fn lane(base: u64, first: u64, count: u64) -> Result<Ends, String> {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let mut direct = PgConnection::connect(&db.url).await.unwrap();
    let mut ends = Ends::new();
    for number in (first..count).step_by(LANES as usize) {
        let seed = base.wrapping_add(number);
        let more = schedule(&db, &mut direct, tenant, seed).await;
        let more = more.map_err(|what| format!("ANGARIUM_TEST_SEED={seed}: {what}"))?;
        more.into_iter().for_each(|(state, count)| *ends.entry(state).or_default() += count);
    }
    Ok(ends)
}

async fn schedule(db: &Database, direct: &mut PgConnection, tenant: TenantId, seed: u64) -> Result<Ends, String> {
    let mut rng = Rng::with_seed(seed);
    run(direct, "delete from queue; delete from lease; delete from intent").await;
    let (spec, recognised, queued) = (random_spec(&mut rng), rng.bool(), rng.bool());
    let rules = Rules::of(&spec, recognised);
    let on_unknown = rules.on_unknown;
    let mut model = Model::accepted(rules, queued);
    let (message, work) = accept(db, tenant, queued).await;
    let mut real = Real { db, direct, tenant, spec, message, work, sleepers: vec![], log: vec![] };
    real.log.push(format!("{:?}, recognised {recognised}, queued {queued}", real.spec));
    let mut ends = Ends::new();
    for _ in 0..STEPS {
        let mut done = step(&mut real, &mut model, &mut rng, on_unknown).await;
        if done.is_ok() {
            done = real.compare(&model).await;
        }
        done.map_err(|what| format!("{what}\n  {}", real.log.join("\n  ")))?;
        if let Place::End(state) = model.place {
            *ends.entry(state).or_default() += 1;
        }
    }
    Ok(ends)
}

/// Whether an action was done, and not refused.
fn done(result: app::Result<MessageView>) -> bool {
    match result {
        Ok(_) => true,
        Err(UseCaseError::Conflict { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

async fn step(real: &mut Real<'_>, model: &mut Model, rng: &mut Rng, on_unknown: OnUnknown) -> Result<(), String> {
    let bell = Arc::new(Notify::new());
    let changes = Changes::bare(real.db.store.clone());
    let by = Principal { tenant: real.tenant, actor: Actor::command_line("somebody") };
    let actions = MessageActions { changes: &changes, bell: &bell, by: &by, job: None };
    let same = |what: &str, real: bool, model: bool| {
        if real == model { Ok(()) } else { Err(format!("{what}: the gateway says {real}, the model {model}")) }
    };
    // A person, and a sleeper that wakes, come at any time.
    match rng.u8(0..24) {
        0 => {
            real.log.push("cancel".into());
            return same("cancel", done(actions.cancel(real.message).await), model.canceled());
        }
        1 => {
            real.log.push("retry by hand".into());
            return same("retry", done(actions.retry(real.message, None).await), model.retried());
        }
        2 | 3 if model.place != Place::LostWorker && !real.sleepers.is_empty() => {
            real.log.push("a late write".into());
            let sleeper = real.sleepers[rng.usize(0..real.sleepers.len())].clone();
            return same("late write", real.late_write(&sleeper).await, false);
        }
        4 if model.place != Place::LostWorker => {
            real.log.push("old leases end".into());
            real.recover().await;
            return Ok(());
        }
        _ => {}
    }
    match model.place {
        Place::Queue { due: false } => {
            real.log.push("time".into());
            real.come_due().await;
            model.came_due();
        }
        Place::Queue { due: true } => {
            real.log.push("claim".into());
            real.claim().await;
            model.claimed();
        }
        Place::Worker => return work(real, model, rng, on_unknown).await,
        Place::LostWorker if rng.u8(0..4) == 0 => {
            real.log.push("it was not lost, and wakes in time".into());
            real.work = real.sleepers.pop();
            model.worker_woke();
        }
        Place::LostWorker => {
            real.log.push("the lost worker's lease ends".into());
            real.recover().await;
            model.recovered();
        }
        Place::End(_) => {
            real.log.push("retry by hand".into());
            return same("retry", done(actions.retry(real.message, None).await), model.retried());
        }
    }
    Ok(())
}

/// The worker asks the next candidate; it may be lost before or after it committed to that.
async fn work(real: &mut Real<'_>, model: &mut Model, rng: &mut Rng, on_unknown: OnUnknown) -> Result<(), String> {
    let lost = rng.u8(0..6);
    if lost == 0 {
        real.log.push("the worker is lost".into());
        real.sleepers.extend(real.work.take());
        model.worker_lost();
        return Ok(());
    }
    if rng.u8(0..8) == 0 {
        let keep_lease = rng.bool();
        real.log.push(format!("it is put off, the lease stays {keep_lease}"));
        real.put_off(keep_lease).await;
        model.put_off();
        return Ok(());
    }
    let (planned, wanted) = (real.plan(&real.work.as_ref().unwrap().past), model.candidate());
    if planned != wanted {
        return Err(format!("the plan asks {planned:?}, the model {wanted:?}"));
    }
    let candidate = wanted.ok_or("nobody is left to ask, and yet it was not ended")?;
    if model.began(candidate) {
        real.intend(candidate, on_unknown == OnUnknown::Hold).await;
    }
    if lost == 1 {
        real.log.push(format!("the worker is lost while it asks {candidate}"));
        real.sleepers.extend(real.work.take());
        model.worker_lost();
        return Ok(());
    }
    let disposition = ANSWERS[rng.usize(0..ANSWERS.len())];
    let keep_lease = rng.bool();
    real.log.push(format!("{candidate} answers {disposition:?}, the lease stays {keep_lease}"));
    let outcome = real.answer(candidate, disposition, on_unknown, keep_lease).await;
    let next = model.answered(candidate, disposition);
    let same = match (&outcome, next) {
        (Outcome::FallBack(_), Next::AskAnother) | (Outcome::Retry(_), Next::Wait) => true,
        (Outcome::Sent, Next::End(state)) => state == DeliveryState::Sent,
        (Outcome::End(real), Next::End(model)) => *real == model,
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("the outcome is {outcome:?}, the model's {next:?}")) }
}

/// `ANGARIUM_TEST_SEED` replays one schedule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_does_what_the_model_does_whatever_happens() {
    let given = std::env::var("ANGARIUM_TEST_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let base = given.unwrap_or_else(seed::seed);
    let count = if given.is_some() { 1 } else { SCHEDULES };
    println!("{count} schedules from ANGARIUM_TEST_SEED={base}");
    let lane = |first| lane(base, first, count);
    let lanes = tokio::join!(lane(0), lane(1), lane(2), lane(3));
    let mut ends = Ends::new();
    for lane in [lanes.0, lanes.1, lanes.2, lanes.3] {
        let lane = lane.unwrap_or_else(|what| panic!("{what}"));
        lane.into_iter().for_each(|(state, count)| *ends.entry(state).or_default() += count);
    }
    if given.is_none() {
        use DeliveryState::{Canceled, Failed, Sent, Unknown};
        let missing: Vec<_> =
            [Sent, Failed, Unknown, Canceled].into_iter().filter(|it| !ends.contains_key(it)).collect();
        assert!(missing.is_empty(), "the schedules never reach {missing:?}");
    }
}
