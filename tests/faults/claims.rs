//! Requests with a claim: of all that race for one, one writes its messages, and the others write nothing at all.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use angarium::{
    clock,
    engine::{
        admission::{Admission, AdmitError, ClaimEnd, Outlet, ProducerClaim},
        capacity::Capacity,
        experiments::Experiments,
        guards::GuardRegistry,
        queue::Leases,
        rule_runner::{RuleRunner, RuleTimes},
        small_tenant_priority::SmallTenantPriority,
    },
    node::{providers::Providers, tenant_config::TenantConfigs},
};
use angarium_domain::{
    callback::PublicUrl,
    delivery::DeliveryState,
    ids::{ConnectionId, MessageId, TenantId},
    legs::Leg,
    message::{Body, Content, Idempotency, Message, NewMessage},
};
use angarium_runtime::{Runtime, RuntimeSettings};
use angarium_store::{
    self as store, Connection, Store,
    event::event_insert_all,
    follow_up::{EndedDelivery, follow_up_end},
};
use angarium_transport::{byte_budget::ByteBudget, sealing::Keyring};
use tokio::task::JoinSet;

use crate::support::{
    database::Database,
    proxy::{Loss, Proxy, Writer},
};

/// The memory for large messages, in bytes.
const ARRIVALS: usize = 200_000;

/// The admission of a node that does not dispatch.
struct TestAdmission {
    admission: Admission,
    arrivals: Arc<ByteBudget>,
    _writers: JoinSet<()>,
}

impl TestAdmission {
    fn on(store: &Store) -> Self {
        let keyring = Arc::new(Keyring::from_base64(&Keyring::generate().unwrap()).unwrap());
        let (guards, _) = GuardRegistry::new(store.clone(), Duration::from_secs(1), 8);
        let configs = Arc::new(TenantConfigs::new(store.clone(), keyring, 8, guards, PublicUrl::new(None)));
        let runtime = Runtime::new(RuntimeSettings::default()).unwrap();
        let providers = Arc::new(Providers::new(store.clone(), Arc::new(runtime)));
        let times = RuleTimes { message: Duration::from_millis(20), tenant: Duration::from_millis(200) };
        let rules = RuleRunner::new(times);
        let (experiments, _) = Experiments::new(store.clone(), Arc::clone(&rules));
        let capacity = Capacity::new(1_000, 1 << 30);
        let arrivals = ByteBudget::new(ARRIVALS);
        let outlet = Outlet {
            leases: Leases::new(Duration::from_secs(10)),
            handoff: None,
            planner: None,
            bell: Arc::default(),
            small_tenants: SmallTenantPriority::new(Arc::clone(&capacity)),
            capacity,
            arrivals: Arc::clone(&arrivals),
        };
        let mut writers = JoinSet::new();
        let admission = Admission::start(store, configs, providers, experiments, rules, outlet, &mut writers);
        Self { admission, arrivals, _writers: writers }
    }

    async fn claim(&self, claim: &TestClaim, messages: Vec<NewMessage>) -> Result<ClaimEnd, AdmitError> {
        self.admission.admit_with(claim.ended.tenant, claim.clone(), messages).await
    }
}

type Results = Vec<Result<MessageId, AdmitError>>;

/// Takes an end out of those that are to be followed up, as the follow-ups of scripts do.
#[derive(Clone)]
struct TestClaim {
    ended: EndedDelivery,
    returns: Vec<NewMessage>,
    recorded: Arc<Mutex<Vec<Results>>>,
}

impl ProducerClaim for TestClaim {
    async fn take(&self, db: &mut Connection) -> store::Result<Option<Vec<NewMessage>>> {
        Ok(follow_up_end(db, &self.ended).await?.then(|| self.returns.clone()))
    }

    async fn record(&self, db: &mut Connection, results: &[Result<MessageId, AdmitError>]) -> store::Result<()> {
        self.recorded.lock().unwrap().push(results.to_vec());
        let of = [(self.ended.message, self.ended.delivery)];
        event_insert_all(db, self.ended.tenant, &of, "message.followed_up", None).await
    }
}

/// Returns a claim whose row is there.
async fn open_claim(db: &Database, tenant: TenantId) -> TestClaim {
    let message = MessageId::with_legs();
    let ended = EndedDelivery { tenant, delivery: message.first_delivery(), message, state: DeliveryState::Failed };
    db.sql(&format!(
        "insert into follow_up (tenant_id, delivery_id, message_id, state) values ('{}', '{}', '{}', 'failed')",
        tenant.uuid(),
        ended.delivery.uuid(),
        message.uuid(),
    ))
    .await;
    TestClaim { ended, returns: Vec::new(), recorded: Arc::default() }
}

/// Returns a message that names its connection, so that it needs no route.
fn message(text: &str) -> NewMessage {
    let content = Content { text: Some(text.to_owned()), ..Content::default() };
    let leg = Leg { connection: Some(ConnectionId::new()), content, ..Leg::on("webhook".parse().unwrap()) };
    let message = Message::with(leg, Body::default());
    let message = Message { id: MessageId::with_legs(), created_at: clock::now(), ..message };
    NewMessage { message, idempotency: None, attachments: Vec::new(), rule_input: None }
}

/// Returns a message that no route serves.
fn without_route() -> NewMessage {
    let mut new = message("x");
    new.message.first_mut().connection = None;
    new
}

fn taken(end: Result<ClaimEnd, AdmitError>) -> Results {
    match end.unwrap() {
        ClaimEnd::Taken(answers) => answers.into_iter().map(|it| it.map(|it| it.message.id)).collect(),
        ClaimEnd::Missed => panic!("the claim was missed"),
    }
}

/// The rows of claims, messages, queue and events.
async fn counts(db: &Database) -> [usize; 4] {
    let mut counts = [0; 4];
    for (count, table) in counts.iter_mut().zip(["follow_up", "message", "queue", "event"]) {
        *count = db.sql(&format!("select count(*) from {table}")).await.trim().parse().unwrap();
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_claims_one_writes_and_the_others_write_nothing_at_all() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let nodes: Vec<_> = (0..3).map(|_| Store::new(&db.url, 4).unwrap()).collect();
    let nodes: Vec<_> = nodes.iter().map(|store| Arc::new(TestAdmission::on(store))).collect();
    for _ in 0..20 {
        let claim = open_claim(&db, tenant).await;
        let mut racers = JoinSet::new();
        for node in nodes.iter().cycle().take(12) {
            let (node, claim) = (Arc::clone(node), claim.clone());
            racers.spawn(async move {
                let messages = vec![message("a"), message("b")];
                let ids: Vec<_> = messages.iter().map(|it| it.message.id).collect();
                (ids, node.claim(&claim, messages).await)
            });
        }
        let mut winners = 0;
        while let Some(raced) = racers.join_next().await {
            let (ids, end) = raced.unwrap();
            if let ClaimEnd::Taken(answers) = end.unwrap() {
                assert_eq!(answers.into_iter().map(|it| it.unwrap().message.id).collect::<Vec<_>>(), ids);
                winners += 1;
            }
        }
        assert_eq!((winners, claim.recorded.lock().unwrap().len()), (1, 1));
    }
    assert_eq!(counts(&db).await, [0, 40, 40, 20]);
}

#[tokio::test]
async fn a_claim_returns_messages_which_pass_the_stages_and_it_records_the_refused_ones() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let node = TestAdmission::on(&db.store);
    let returns = vec![without_route(), message("returned")];
    let claim = TestClaim { returns, ..open_claim(&db, tenant).await };
    let results = taken(node.claim(&claim, vec![message("own"), without_route()]).await);
    let no_route = |result: &Result<_, _>| matches!(result, Err(AdmitError::NoRoute { leg: None, .. }));
    assert!(results.len() == 4 && no_route(&results[1]) && no_route(&results[2]), "{results:?}");
    assert_eq!(results[3], Ok(claim.returns[1].message.id));
    assert_eq!(*claim.recorded.lock().unwrap(), [results], "the producer learns the same amid the transaction");
    assert_eq!(counts(&db).await, [0, 2, 2, 1]);
}

#[tokio::test]
async fn a_claim_whose_messages_are_all_refused_stands_and_a_known_key_has_its_first_answer() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let node = TestAdmission::on(&db.store);
    let keyed = |mut new: NewMessage| {
        new.idempotency = Some(Idempotency { key: "k".into(), fingerprint: [7; 32], former: Vec::new() });
        new
    };
    let claim = open_claim(&db, tenant).await;
    let first = taken(node.claim(&claim, vec![keyed(message("x"))]).await);
    let claim = open_claim(&db, tenant).await;
    // The second has the key too, and no route any more.
    let again = taken(node.claim(&claim, vec![keyed(message("x")), keyed(without_route())]).await);
    assert_eq!(again, [first[0].clone(), first[0].clone()]);
    let claim = open_claim(&db, tenant).await;
    let refused = taken(node.claim(&claim, vec![without_route()]).await);
    assert!(refused[0].is_err() && claim.recorded.lock().unwrap().len() == 1);
    assert_eq!(counts(&db).await, [0, 1, 1, 3]);
}

#[tokio::test]
async fn an_obstacle_that_passes_leaves_the_claim_for_the_next_try() {
    let db = Database::new().await;
    let tenant = db.tenant("one").await;
    let node = TestAdmission::on(&db.store);
    let large = || message(&"x".repeat(ARRIVALS / 2));
    let held = node.arrivals.try_take(tenant, ARRIVALS / 2).unwrap();
    let own = open_claim(&db, tenant).await;
    assert_eq!(node.claim(&own, vec![message("x"), large()]).await.unwrap_err(), AdmitError::Busy);
    let returning = TestClaim { returns: vec![large()], ..open_claim(&db, tenant).await };
    assert_eq!(node.claim(&returning, vec![message("x")]).await.unwrap_err(), AdmitError::Busy);
    assert_eq!(counts(&db).await, [2, 0, 0, 0]);
    drop(held);
    assert_eq!(taken(node.claim(&own, vec![message("x"), large()]).await).len(), 2);
    assert_eq!(taken(node.claim(&returning, vec![message("x")]).await).len(), 2);
    assert_eq!(counts(&db).await, [0, 4, 4, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_during_the_commit_of_a_claim_is_asked_after_before_the_answer() {
    for loss in [Loss::OfTheCommit, Loss::OfTheAnswer] {
        let db = Database::new().await;
        let tenant = db.tenant("one").await;
        let proxy = Proxy::new(&db.url);
        let node = TestAdmission::on(&Store::new(&proxy.url(&db.url), 2).unwrap());
        let claim = open_claim(&db, tenant).await;
        let messages = vec![message("x")];
        let id = messages[0].message.id;
        proxy.lose(loss, Writer::Admission);
        let end = node.claim(&claim, messages.clone()).await;
        assert!(proxy.has_lost());
        match loss {
            Loss::OfTheAnswer => assert_eq!(taken(end), [Ok(id)]),
            Loss::OfTheCommit => {
                assert_eq!(end.unwrap_err(), AdmitError::Unavailable);
                assert_eq!(counts(&db).await, [1, 0, 0, 0], "nothing of it is written");
                assert_eq!(taken(node.claim(&claim, messages).await), [Ok(id)]);
            }
        }
        assert_eq!(counts(&db).await, [0, 1, 1, 1], "{loss:?}");
        assert!(matches!(node.claim(&claim, vec![message("x")]).await, Ok(ClaimEnd::Missed)));
        assert_eq!(counts(&db).await, [0, 1, 1, 1], "{loss:?}");
    }
}
