//! Backtests: messages that were sent are played through the live rules and scripts and through variants of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, Result,
    error::UseCaseError,
    fields::Fields,
    rules::{self, StoredRule},
    scripts::{compiled, is_name, source_fits},
};
use crate::{
    clock,
    engine::planning::country,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    ids::{MessageId, RuleId, TenantId},
    message::Message,
    rule::RuleSpec,
};
use angarium_rules::{
    RuleSet,
    backtest::{AskedConnection, BacktestOutcome, BacktestPlace, Replayed, Report, Tally, given, replay},
    experiment::Variant,
    language::Language,
    rulebook::{Rulebook, Running},
    script::{Given, Modules},
};
use angarium_store::{
    message::{AskedRow, Recorded, message_asked, message_history},
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

/// The report of a backtest, and how far back it goes.
#[derive(Debug)]
pub struct BacktestReport {
    pub since: Timestamp,
    /// Whether all messages since then were examined.
    pub complete: bool,
    /// The acceptance of the oldest examined message.
    pub reached: Option<Timestamp>,
    pub report: Report,
}

/// Plays messages through the live rules and scripts and through the variant. Nothing is sent.
///
/// # Errors
/// When the variant has faults, or this node runs another backtest of the tenant.
pub async fn run(app: &App, tenant: TenantId, new: NewBacktest, fields: Fields) -> Result<BacktestReport> {
    let limit = new.limit.unwrap_or(USUALLY);
    let since = new.since.max(Timestamp::UNIX_EPOCH);
    let config = app.tenant_configs.reload(tenant).await?;
    let (stored, modules) = stored(app, tenant).await?;
    let live = config.rulebook.as_deref().map(|book| book.rehearsal().alone()).unwrap_or_default();
    let variant = variant(new, stored, modules, live.clone(), fields).await?;
    let busy = || {
        let detail = "this node runs another backtest of the tenant: ask again when it is done";
        UseCaseError::conflict("backtest_running", detail)
    };
    let _only = Only::of(tenant).ok_or_else(busy)?;
    Run { app, tenant, config, live, variant }.over(since, limit).await
}

/// Sources of modules by name.
type ModuleSources = BTreeMap<String, String>;

/// All rules of the tenant, and the modules that its scripts can import.
async fn stored(app: &App, tenant: TenantId) -> Result<(Vec<StoredRule>, ModuleSources)> {
    let rules = rules::all(app, tenant).await?;
    let mut txn = app.store.tenant(tenant).await?;
    Ok((rules, module_list(&mut txn, tenant).await?))
}

/// Returns the rule book with the variant, or all of its faults.
async fn variant(
    new: NewBacktest,
    stored: Vec<StoredRule>,
    modules: ModuleSources,
    live: Rulebook,
    fields: Fields,
) -> Result<Rulebook> {
    let work = tokio::task::spawn_blocking(move || {
        let mut fields = fields;
        let modules = Modules::stored(&modules);
        let book = changed(&new, stored, &modules, live, &mut fields);
        (book, fields)
    });
    let (book, fields) = work.await.map_err(|error| UseCaseError::internal(&error))?;
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
        book.rules = rule_set(&new.rules, stored, fields).map(Arc::new);
    }
    let script =
        new.script.as_ref().and_then(|script| fields.within("script", |fields| running(script, modules, fields)));
    match script {
        Some(script) => book.trying(&Variant::Script(Arc::new(script))),
        None => book,
    }
}

/// The tenant's rules with these in their places.
fn rule_set(tried: &[RuleTry], stored: Vec<StoredRule>, fields: &mut Fields) -> Option<RuleSet> {
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
    fields.check(is_name(name), "name", "wrong_format", || {
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
    variant: Rulebook,
}

impl Run<'_> {
    async fn over(&self, since: Timestamp, limit: u32) -> Result<BacktestReport> {
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
        Ok(BacktestReport { since, complete, reached, report: tally.report() })
    }

    async fn page(&self, since: Timestamp, before: MessageId, limit: u32) -> Result<Page> {
        let mut txn = self.app.store.tenant(self.tenant).await?;
        let messages = message_history(&mut txn, self.tenant, since, before, limit).await?;
        let ids: Vec<_> = messages.iter().map(|(message, _)| message.id).collect();
        let asked = message_asked(&mut txn, self.tenant, &ids).await?;
        Ok((messages, asked))
    }

    /// Plays a page's messages one by one: between them others of the node's tenants have their turns.
    async fn played(&self, mut tally: Tally, (messages, asked): Page) -> Tally {
        let mut of: HashMap<MessageId, Vec<AskedConnection>> = HashMap::new();
        for AskedRow { message, connection, went_well, cost } in asked {
            let asked = AskedConnection { connection: self.config.name_of(connection), went_well, cost };
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

    fn play(
        &self,
        tally: &mut Tally,
        message: &Message,
        purged: bool,
        asked: &mut HashMap<MessageId, Vec<AskedConnection>>,
    ) {
        if purged {
            return tally.purged();
        }
        let given = given(message);
        tally.add(Replayed {
            message: message.id,
            country: country(message),
            before: self.outcome(&self.live, message, &given),
            after: self.outcome(&self.variant, message, &given),
            asked: asked.remove(&message.id).unwrap_or_default(),
        });
    }

    fn outcome(&self, book: &Rulebook, recorded: &Message, given: &Given) -> BacktestOutcome {
        let (message, judgement) = self.app.rules.as_for_a_message(|| replay(book, recorded, given)).0;
        let accepted = judgement.refused.is_none();
        let endpoint =
            || self.app.dispatcher.planner.backtest_first_connection(&self.config, &book.rehearsal(), &message, given);
        let endpoint = || self.app.rules.as_for_a_message(endpoint).0;
        let endpoint: Option<&Endpoint> = accepted.then(endpoint).flatten();
        let place = BacktestPlace {
            channel: message.first().channel.as_str().to_owned(),
            connection: endpoint.map(Endpoint::name),
            provider: endpoint.map(|it| it.connection.provider.clone()),
        };
        BacktestOutcome::of(&message, &judgement, place)
    }
}

/// Messages, the newest first, and the connections that were asked for them.
type Page = (Vec<Recorded>, Vec<AskedRow>);
