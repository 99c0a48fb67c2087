//! `/v1/rules/backtest`: what would have become of messages that were sent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{RulesReadOnMessages, Tenant},
    draft::Draft,
    fields::Fields,
    json::Json,
    problem::{Problem, ProblemBody},
    script::{compiled, existing, source_fits},
};
use crate::{
    clock,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    country::Country,
    ids::{MessageId, RuleId, TenantId},
    message::Message,
    rule::RuleSpec,
};
use angarium_rules::{
    RuleSet,
    backtest::{Asked, CostChange, Example, Flips, Move, Outcome, Place, Replayed, Report, Tally, given, replay},
    experiment::Candidate,
    language::Language,
    rulebook::{Rulebook, Running},
    script::{Given, Modules},
};
use angarium_store::{
    message::{AskedRow, Recorded, message_asked, message_history},
    rule::{StoredRule, rule_list},
    script::module_list,
};

/// Messages that are looked at, if the request does not say.
const USUALLY: u32 = 10_000;
const MOST: u32 = 100_000;
/// Messages that are in memory at a time.
const PAGE: u32 = 50;
/// How long messages are played before others have their turn.
const AT_ONCE: Duration = Duration::from_millis(20);
/// The time after which a report is returned, with the messages examined by then.
const PATIENCE: Duration = Duration::from_secs(45);
const MOST_RULES: usize = 100;
/// A variant's time limit: no message waits for it.
const TIME: Duration = Duration::from_millis(100);

/// The tenants that have one on this node: one at a time each.
static UNDER_WAY: Mutex<BTreeSet<TenantId>> = Mutex::new(BTreeSet::new());

/// A tenant's only backtest.
struct Only(TenantId);

impl Only {
    fn of(tenant: TenantId) -> Option<Self> {
        under_way().insert(tenant).then_some(Self(tenant))
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        under_way().remove(&self.0);
    }
}

fn under_way() -> MutexGuard<'static, BTreeSet<TenantId>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rules, the script, or both to try on sent messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "rules": [{"of": "vip-by-nordic", "rule": {"name": "Dear customers go by Global",
        "when": {"customer": {"segment": "vip"}}, "then": {"connections": ["sms-global"]}}}],
    "since": "2026-11-01T00:00:00Z"
}))]
pub struct NewBacktest {
    /// Rules as they would be.
    #[serde(default)]
    #[schema(max_items = 100)]
    rules: Vec<RuleTry>,
    #[serde(default)]
    #[schema(required = false, value_type = ScriptTry)]
    script: Option<ScriptTry>,
    /// Messages that were accepted from then on.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// The most messages, the latest ones; 10,000 by default.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100_000)]
    limit: Option<u32>,
}

/// A rule as it would be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleTry {
    /// The rule that it replaces, by id or uid; left out, it is an additional one.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    of: Option<String>,
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = true)]
    rule: Option<RuleSpec>,
}

/// A script as it would be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptTry {
    /// It takes the place of the script of this name, if there is one.
    #[schema(pattern = "^[a-z][a-z0-9_-]{0,63}$")]
    name: String,
    #[schema(min_length = 1, max_length = 65536)]
    source: String,
}

/// The results that sent messages would have had. Refused messages are not on record.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backtest)]
pub struct BacktestAnswer {
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Whether all messages since then were looked at; else only the latest ones, as many as the limits on their
    /// number and on time allow.
    complete: bool,
    /// The oldest message that was looked at.
    #[schema(value_type = Option<String>, format = DateTime)]
    reached: Option<Timestamp>,
    looked_at: u64,
    /// The part whose content is purged: their decision is unknown.
    purged: u64,
    /// The number of those whose result would have changed.
    changed: u64,
    /// The number of those at which a script or an expression would have failed.
    failed: u64,
    refused: FlipsAnswer,
    held: FlipsAnswer,
    /// The first destinations of messages that would have gone elsewhere: the hundred most frequent moves.
    moves: Vec<MoveAnswer>,
    cost: CostAnswer,
    delivery_rate: RateAnswer,
    /// Ten messages that would have become something else.
    examples: Vec<ExampleAnswer>,
}

/// How many would be so that are not, and the other way round.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestFlips)]
pub struct FlipsAnswer {
    newly: u64,
    no_longer: u64,
}

/// The number of messages that move from one place to another; null for a refused message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestMove)]
pub struct MoveAnswer {
    #[schema(value_type = Option<PlaceAnswer>)]
    from: Option<PlaceAnswer>,
    #[schema(value_type = Option<PlaceAnswer>)]
    to: Option<PlaceAnswer>,
    count: u64,
}

/// The first destination of a message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestPlace)]
pub struct PlaceAnswer {
    channel: String,
    /// Its uid, or else its id; null if no connection can be asked.
    connection: Option<String>,
    provider: Option<String>,
}

/// The cost of messages that go elsewhere, by the mean of their connections' costs for the country.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestCost)]
pub struct CostAnswer {
    by_currency: Vec<CostChangeAnswer>,
    /// Messages that go elsewhere with an unknown cost of a connection.
    unknown: u64,
}

/// A cost before and after, in units of the currency.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestCostChange)]
pub struct CostChangeAnswer {
    currency: String,
    before: f64,
    after: f64,
    difference: f64,
}

/// The share of deliveries that ended well, 0 to 1, through the connections of the messages that go elsewhere.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestRate)]
pub struct RateAnswer {
    /// Null if nothing is recorded.
    before: Option<f64>,
    after: Option<f64>,
    difference: Option<f64>,
    /// The number of messages.
    messages: u64,
    /// Messages that go elsewhere through connections without a record.
    unknown: u64,
}

/// A message that would have become something else.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BacktestExample)]
pub struct ExampleAnswer {
    message: String,
    /// The differing members of the decision, as the live version has them.
    #[schema(value_type = Object)]
    before: BTreeMap<&'static str, serde_json::Value>,
    /// The same as the candidate has them.
    #[schema(value_type = Object)]
    after: BTreeMap<&'static str, serde_json::Value>,
}

/// Play sent messages through the live version and through changed rules or a changed script, and report the
/// differences. Nothing is sent. It needs the scopes `rules:read` and `messages:read`.
#[utoipa::path(post, path = "/v1/rules/backtest", tag = "rules", operation_id = "backtestRules",
    request_body = NewBacktest,
    responses(
        (status = 200, description = "The report.", body = BacktestAnswer),
        (status = 409, description = "This node runs another backtest of the tenant.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn backtest(
    tenant: Tenant<RulesReadOnMessages>,
    State(app): State<App>,
    Draft(new, fields): Draft<NewBacktest>,
) -> Result<Json<BacktestAnswer>, Problem> {
    let limit = new.limit.unwrap_or(USUALLY);
    let since = new.since.max(Timestamp::UNIX_EPOCH);
    let config = app.tenant_configs.reload(tenant.id).await?;
    let (stored, modules) = stored(&app, tenant.id).await?;
    let live = config.rulebook.as_deref().map(|book| book.rehearsal().alone()).unwrap_or_default();
    let candidate = candidate(new, stored, modules, live.clone(), fields).await?;
    let busy = || {
        let detail = "this node is at another backtest of the tenant's: ask again when it is done";
        Problem::conflict("backtest_running", detail)
    };
    let _only = Only::of(tenant.id).ok_or_else(busy)?;
    let run = Run { app: &app, tenant: tenant.id, config, live, candidate };
    Ok(Json(run.over(since, limit).await?))
}

/// Sources of modules by name.
type ModuleSources = BTreeMap<String, String>;

/// All rules of the tenant, and the modules that its scripts can import.
async fn stored(app: &App, tenant: TenantId) -> Result<(Vec<StoredRule>, ModuleSources), Problem> {
    let mut txn = app.store.tenant(tenant).await?;
    Ok((rule_list(&mut txn, tenant).await?, module_list(&mut txn, tenant).await?))
}

/// Returns the rule book with the variant, or all of its faults.
async fn candidate(
    new: NewBacktest,
    stored: Vec<StoredRule>,
    modules: ModuleSources,
    live: Rulebook,
    fields: Fields,
) -> Result<Rulebook, Problem> {
    let work = tokio::task::spawn_blocking(move || {
        let mut fields = fields;
        let modules = Modules::stored(&modules);
        let book = changed(&new, stored, &modules, live, &mut fields);
        (book, fields)
    });
    let (book, fields) = work.await.map_err(|error| Problem::internal(&error))?;
    fields.finish()?;
    Ok(book)
}

fn changed(
    new: &NewBacktest,
    stored: Vec<StoredRule>,
    modules: &Modules,
    live: Rulebook,
    fields: &mut Fields,
) -> Rulebook {
    let fits = (1..=MOST).contains(&new.limit.unwrap_or(USUALLY));
    fields.check(fits, "limit", "out_of_range", || format!("must be a whole number from 1 to {MOST}"));
    let past = new.since <= clock::now();
    fields.check(past, "since", "out_of_range", || "must not lie in the future".to_owned());
    fields
        .check(new.rules.len() <= MOST_RULES, "rules", "too_many", || format!("must list at most {MOST_RULES} rules"));
    let something = !new.rules.is_empty() || new.script.is_some();
    fields.check(something, "rules", "missing", || "must be given where there is no `script`".to_owned());
    let mut book = live;
    if !new.rules.is_empty() {
        book.rules = rules(&new.rules, stored, fields).map(Arc::new);
    }
    let script =
        new.script.as_ref().and_then(|script| fields.within("script", |fields| running(script, modules, fields)));
    match script {
        Some(script) => book.trying(&Candidate::Script(Arc::new(script))),
        None => book,
    }
}

/// The tenant's rules with these in their places.
fn rules(tried: &[RuleTry], stored: Vec<StoredRule>, fields: &mut Fields) -> Option<RuleSet> {
    let mut specs: Vec<_> = stored.iter().map(|it| (it.id, it.spec.clone())).collect();
    let mut places: HashMap<RuleId, usize> = HashMap::new();
    let mut at = 0;
    fields.each("rules", tried, |fields, tried| {
        let (index, RuleTry { of, rule }) = (at, tried);
        at += 1;
        let Some(spec) = rule else { return fields.missing("rule") };
        let id = match of.as_deref() {
            None => RuleId::new(),
            Some(name) => {
                let named = |it: &&StoredRule| it.id.to_string() == name || it.uid.as_deref() == Some(name);
                let Some(known) = stored.iter().find(named) else {
                    return fields.check(false, "of", "unknown_rule", || {
                        "does not exist: leave it out for a further rule".to_owned()
                    });
                };
                known.id
            }
        };
        if places.insert(id, index).is_some() {
            return fields.check(false, "of", "duplicate", || "must name each rule once".to_owned());
        }
        specs.retain(|(it, _)| *it != id);
        specs.push((id, spec.clone()));
    });
    let new = specs.iter().filter(|(id, _)| places.contains_key(id)).cloned().collect();
    let compiled = RuleSet::compile(new, Box::<Language>::default())
        .and_then(|_| RuleSet::stored(specs, Box::new(Language::stored())));
    let problems = compiled.as_ref().err().into_iter().flatten();
    for problem in problems {
        let (id, rest) = problem.pointer.trim_start_matches('/').split_once('/').unwrap_or((&problem.pointer, ""));
        let place = id.parse().ok().and_then(|id: RuleId| places.get(&id));
        let pointer = place.map_or_else(|| "/rules".to_owned(), |place| format!("/rules/{place}/rule/{rest}"));
        fields.elsewhere(pointer.trim_end_matches('/'), problem.code, problem.detail.clone());
    }
    compiled.ok()
}

fn running(script: &ScriptTry, modules: &Modules, fields: &mut Fields) -> Option<Running> {
    let ScriptTry { name, source } = script;
    fields.check(existing(name).is_ok(), "name", "wrong_format", || {
        "must have at most 64 small letters, digits, `-` and `_`, and begin with a letter".to_owned()
    });
    if !source_fits(source, fields) {
        return None;
    }
    let script = compiled(name, source, modules, fields)?;
    Some(Running::new(name.clone(), 0, source.as_str().into(), script.allowing(TIME)))
}

/// A backtest under way.
struct Run<'a> {
    app: &'a App,
    tenant: TenantId,
    config: Arc<TenantConfig>,
    live: Rulebook,
    candidate: Rulebook,
}

impl Run<'_> {
    async fn over(&self, since: Timestamp, limit: u32) -> Result<BacktestAnswer, Problem> {
        let (began, mut tally, mut left) = (Instant::now(), Tally::default(), limit);
        let (mut before, mut reached) = (MessageId::from(uuid::Uuid::max()), None);
        let complete = loop {
            let page = self.page(since, before, left.min(PAGE)).await?;
            let Some((oldest, _)) = page.0.last() else { break true };
            (before, reached) = (oldest.id, Some(oldest.created_at));
            left -= u32::try_from(page.0.len()).unwrap_or(left).min(left);
            tally = self.played(tally, page).await;
            if left == 0 || began.elapsed() > PATIENCE || self.app.stop.is_cancelled() {
                break self.page(since, before, 1).await?.0.is_empty();
            }
        };
        Ok(BacktestAnswer::new(tally.report(), since, complete, reached))
    }

    async fn page(&self, since: Timestamp, before: MessageId, limit: u32) -> Result<Page, Problem> {
        let mut txn = self.app.store.tenant(self.tenant).await?;
        let messages = message_history(&mut txn, self.tenant, since, before, limit).await?;
        let ids: Vec<_> = messages.iter().map(|(message, _)| message.id).collect();
        let asked = message_asked(&mut txn, self.tenant, &ids).await?;
        Ok((messages, asked))
    }

    /// Plays a page's messages one by one: between them others of the node's tenants have their turns.
    async fn played(&self, mut tally: Tally, (messages, asked): Page) -> Tally {
        let mut of: HashMap<MessageId, Vec<Asked>> = HashMap::new();
        for AskedRow { message, connection, went_well, cost } in asked {
            let asked = Asked { connection: self.config.name_of(connection), went_well, cost };
            of.entry(message).or_default().push(asked);
        }
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let play = || {
                let began = Instant::now();
                while let Some((message, purged)) = messages.next_if(|_| began.elapsed() < AT_ONCE) {
                    self.play(&mut tally, &message, purged, &mut of);
                }
            };
            self.app.rules.try_out(self.tenant, play).await;
        }
        tally
    }

    fn play(&self, tally: &mut Tally, message: &Message, purged: bool, asked: &mut HashMap<MessageId, Vec<Asked>>) {
        if purged {
            return tally.purged();
        }
        let given = given(message);
        tally.add(Replayed {
            message: message.id,
            country: Country::of_address(message.channel.as_str(), message.body.recipient()),
            before: self.outcome(&self.live, message, &given),
            after: self.outcome(&self.candidate, message, &given),
            asked: asked.remove(&message.id).unwrap_or_default(),
        });
    }

    fn outcome(&self, book: &Rulebook, recorded: &Message, given: &Given) -> Outcome {
        let (message, judgement) = self.app.rules.as_for_a_message(|| replay(book, recorded, given)).0;
        let accepted = judgement.refused.is_none();
        let endpoint =
            || self.app.dispatcher.planner.backtest_first_connection(&self.config, &book.rehearsal(), &message, given);
        let endpoint = || self.app.rules.as_for_a_message(endpoint).0;
        let endpoint: Option<&Endpoint> = accepted.then(endpoint).flatten();
        let place = Place {
            channel: message.channel.as_str().to_owned(),
            connection: endpoint.map(Endpoint::name),
            provider: endpoint.map(|it| it.connection.provider.clone()),
        };
        Outcome::of(&message, &judgement, place)
    }
}

/// Messages, the newest first, and the connections that were asked for them.
type Page = (Vec<Recorded>, Vec<AskedRow>);

impl BacktestAnswer {
    fn new(report: Report, since: Timestamp, complete: bool, reached: Option<Timestamp>) -> Self {
        let Report {
            looked_at,
            purged,
            changed,
            failed,
            refused,
            held,
            moves,
            costs,
            cost_unknown,
            delivery,
            examples,
        } = report;
        let (before, after) = delivery.rates.unzip();
        Self {
            since,
            complete,
            reached,
            looked_at,
            purged,
            changed,
            failed,
            refused: refused.into(),
            held: held.into(),
            moves: moves.into_iter().map(MoveAnswer::from).collect(),
            cost: CostAnswer {
                by_currency: costs.into_iter().map(CostChangeAnswer::from).collect(),
                unknown: cost_unknown,
            },
            delivery_rate: RateAnswer {
                before,
                after,
                difference: delivery.rates.map(|(before, after)| after - before),
                messages: delivery.messages,
                unknown: delivery.unknown,
            },
            examples: examples.into_iter().map(ExampleAnswer::from).collect(),
        }
    }
}

impl From<Flips> for FlipsAnswer {
    fn from(Flips { newly, no_longer }: Flips) -> Self {
        Self { newly, no_longer }
    }
}

impl From<Move> for MoveAnswer {
    fn from(Move { from, to, count }: Move) -> Self {
        let place = |Place { channel, connection, provider }| PlaceAnswer { channel, connection, provider };
        Self { from: from.map(place), to: to.map(place), count }
    }
}

impl From<CostChange> for CostChangeAnswer {
    fn from(CostChange { currency, before, after }: CostChange) -> Self {
        Self { currency, before, after, difference: after - before }
    }
}

impl From<Example> for ExampleAnswer {
    fn from(Example { message, difference }: Example) -> Self {
        Self { message: message.to_string(), before: difference.live, after: difference.candidate }
    }
}
