//! `/v1/routes`. Create is not activate: a version does nothing until it is activated.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{RoutesRead, RoutesWrite, Tenant},
    connection,
    draft::Draft,
    fields::{self, Fields},
    json::Json,
    overrides::{self, Overrides},
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::clock;
use angarium_domain::{
    ids::{ConnectionId, RouteId, TenantId},
    message::Channel,
    provider::Cost,
    retry::{self, LONGEST_ELAPSED_MS, RetryLimits, RetryPolicy},
    route::{self as domain, RouteSpec},
};
use angarium_rules::{rulebook::Rulebook, script::Hook};
use angarium_store::{
    self as store, Connection as Db, StoreError,
    connection::connection_lock,
    page::PageRows,
    route::{
        RouteRow, RouteVersion, route_activate, route_deactivate_others, route_find, route_insert, route_list,
        route_lock, route_version_get, route_version_insert, route_versions,
    },
    tenant::tenant_config_grow,
};

const MOST_CANDIDATES: usize = 20;
const HIGHEST_WEIGHT: u32 = 100;
/// A million of a currency.
const HIGHEST_COST: i64 = 1_000_000_000_000;

/// A new route: its first version, which does nothing until activated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "uid": "mail", "channel": "email",
    "spec": {"candidates": [{"connection": "primary-smtp"}, {"connection": "backup-smtp"}],
        "retry": {"type": "exponential", "initial_ms": 1000, "max_ms": 600_000, "max_attempts": 10}}
}))]
pub struct NewRoute {
    /// The client's own name for it; works wherever the id does.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    uid: Option<String>,
    // This and the specification are optional for serde alone, so that the rest is checked where
    // they are missing.
    #[serde(default)]
    #[schema(value_type = String, required = true, pattern = "^[a-z][a-z0-9_]{0,31}$", example = "email")]
    channel: Option<String>,
    #[serde(default)]
    #[schema(value_type = Spec, required = true)]
    spec: Option<Spec>,
}

/// A further version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"spec": {"candidates": [{"connection": "backup-smtp"}, {"connection": "primary-smtp"}]}}))]
pub struct NewVersion {
    spec: Spec,
}

/// Which version is to serve.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 2}))]
pub struct Activation {
    #[schema(minimum = 1)]
    version: i32,
}

/// How a channel's messages are routed.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RouteSpec)]
pub struct Spec {
    /// In order of preference; each once.
    #[serde(default)]
    #[schema(required = true, min_items = 1, max_items = 20)]
    candidates: Vec<Candidate>,
    #[serde(default)]
    strategy: Strategy,
    /// The highest cost of a delivery: a candidate with a higher estimate, or with another currency, is not asked.
    #[serde(default)]
    max_cost: Option<Money>,
    /// In 0..1: a candidate with a lower recent success rate is not asked while another one reaches it.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    min_success_rate: Option<f64>,
    #[serde(default)]
    retry: Retry,
    /// The meaning of providers' codes, in place of the providers' own: by code, or by a provider's name and then its
    /// codes. It takes precedence over the tenant's settings.
    #[serde(default)]
    overrides: Overrides,
    /// Whether the next candidate serves at once when one did not take the delivery; true, if left out.
    #[serde(default)]
    fallback: Option<bool>,
    /// When a request began and no answer came: try again with the same key, or hold. Left out:
    /// `retry` where the provider recognises a repetition, `hold` where it does not.
    #[serde(default)]
    on_unknown: Option<OnUnknown>,
}

/// One connection of a route.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its id or uid.
    #[schema(min_length = 1, max_length = 128)]
    connection: String,
    /// Its share under `round_robin` and `weighted_random`; 1 by default. With 0 it only stands in for the others,
    /// under every strategy.
    #[serde(default)]
    #[schema(maximum = 100)]
    weight: Option<u32>,
    /// The price of a unit (a message, or a segment of one), in place of the provider's own.
    #[serde(default)]
    cost: Option<Money>,
    /// The most that a delivery through it may cost, beside the route's own ceiling.
    #[serde(default)]
    max_cost: Option<Money>,
}

/// An amount of money.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Millionths of the currency's unit.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64, example = 7900)]
    micros: i64,
    /// ISO 4217; one for all of a route.
    #[schema(pattern = "^[A-Z]{3}$", example = "USD")]
    currency: String,
}

/// How the candidates are ordered; those that are not the first stand in for it in that order.
// The variants have braces, here and below: serde refuses further members only of those.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// As they are listed.
    Primary {},
    /// In turn, each as often as its weight says.
    RoundRobin {},
    /// By lot, each as often as its weight says.
    WeightedRandom {},
    /// The cheapest for this delivery first; unknown costs come last.
    LeastCost {},
    /// The candidate with the best recent success rate for the destination's country, the fastest of equal ones; one in
    /// fifty deliveries asks another, to learn how it performs.
    HighestReliability {},
}

/// When to try again once none of the candidates took a delivery.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = RetryPolicy)]
pub enum Retry {
    /// Never.
    None {},
    /// After the same delay each time.
    Linear {
        #[schema(maximum = 2_678_400_000_u64)]
        delay_ms: u64,
        #[schema(minimum = 1, maximum = 100)]
        max_attempts: u32,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: Option<Budget>,
    },
    /// After `initial_ms · factor^n`, at most `max_ms`, shortened by up to `jitter` of itself at random.
    Exponential {
        #[schema(minimum = 1)]
        initial_ms: u64,
        /// `initial_ms` or more.
        #[schema(minimum = 1, maximum = 2_678_400_000_u64)]
        max_ms: u64,
        /// 2, if left out.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 10)]
        factor: Option<f64>,
        /// 0.5, if left out.
        #[serde(default)]
        #[schema(minimum = 0, maximum = 1)]
        jitter: Option<f64>,
        #[schema(minimum = 1, maximum = 100)]
        max_attempts: u32,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: Option<Budget>,
    },
    /// One delay after each attempt.
    Schedule {
        #[schema(max_items = 100)]
        delays_ms: Vec<u64>,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: Option<Budget>,
    },
    /// As the script of this name decides.
    Custom {
        #[schema(min_length = 1, max_length = 128)]
        rule: String,
        /// The policy if the rule does not answer; its limits apply to the rule, too.
        #[schema(no_recursion)]
        otherwise: Box<Retry>,
    },
}

/// The share of retries among the requests through one connection, on each node. It limits nothing while at least half
/// of the retries succeed.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RetryBudget)]
pub struct Budget {
    /// Retries for each other request; 0.2, if left out.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    share: Option<f64>,
    /// Retries a second beside it; 10, if left out.
    #[serde(default)]
    #[schema(minimum = 0.1, maximum = 10_000)]
    min_per_second: Option<f64>,
}

/// The reaction to a request that began and got no definite answer.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    Retry,
    Hold,
}

/// A route.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteRow)]
pub struct RouteAnswer {
    #[schema(example = "route_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    uid: Option<String>,
    channel: String,
    /// Null: it does nothing.
    active_version: Option<i32>,
    /// The version that a rollback returns to.
    previous_version: Option<i32>,
    latest_version: Option<i32>,
    /// The newest first, at most 20.
    versions: Vec<VersionAnswer>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A version of a route; it never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteVersion)]
pub struct VersionAnswer {
    version: i32,
    spec: Spec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// Make a route with its first version.
#[utoipa::path(post, path = "/v1/routes", tag = "routes", operation_id = "createRoute",
    request_body = NewRoute,
    responses(
        (status = 201, description = "It was made, and is not active.", body = RouteAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<NewRoute>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    if let Some(uid) = &new.uid {
        fields::uid(&mut fields, uid);
    }
    let channel = fields::channel(&mut fields, new.channel.as_deref());
    let mut txn = app.store.tenant(tenant.id).await?;
    let spec = match new.spec {
        Some(spec) => Some(spec.checked(&app, &mut txn, tenant.id, channel.as_ref(), &mut fields).await?),
        None => None,
    };
    if spec.is_none() {
        fields.missing("spec");
    }
    let (Some(channel), Some(spec), true) = (channel, spec, fields.is_empty()) else { return Err(refusal(fields)) };
    let now = clock::now();
    let (id, uid) = (RouteId::new(), new.uid);
    let route =
        RouteRow { id, uid, channel, active_version: None, previous_version: None, created_at: now, updated_at: now };
    route_insert(&mut txn, tenant.id, &route).await.map_err(taken)?;
    route_version_insert(&mut txn, tenant.id, id, &spec).await?;
    let answer = answers(&mut txn, tenant.id, vec![route]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// List the routes, the newest first.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", operation_id = "listRoutes",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50, if left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<RouteAnswer>)))]
pub async fn list(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<RouteAnswer>>, Problem> {
    let paging = Paging::<RouteId>::of(&mut query);
    query.finish()?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let PageRows { rows, more } = route_list(&mut txn, tenant.id, paging.after, paging.limit).await?;
    let rows = answers(&mut txn, tenant.id, rows).await?;
    Ok(Json(Page::of(PageRows { rows, more }, |row| row.id.clone(), |row| row)))
}

/// Show a route with its versions.
#[utoipa::path(get, path = "/v1/routes/{route}", tag = "routes", operation_id = "getRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    responses((status = 200, description = "The route.", body = RouteAnswer)))]
pub async fn get(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = named(&mut txn, tenant.id, &name).await?;
    Ok(Json(answers(&mut txn, tenant.id, vec![route]).await?.remove(0)))
}

/// Add a version, which does nothing until activated.
#[utoipa::path(post, path = "/v1/routes/{route}/versions", tag = "routes", operation_id = "createRouteVersion",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    request_body = NewVersion,
    responses((status = 201, description = "The route with the version.", body = RouteAnswer)))]
pub async fn create_version(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, mut fields): Draft<NewVersion>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let spec = new.spec.checked(&app, &mut txn, tenant.id, Some(&route.channel), &mut fields).await?;
    if let Some(problem) = fields.into_problem() {
        return Err(problem);
    }
    route_version_insert(&mut txn, tenant.id, route.id, &spec).await?;
    let answer = answers(&mut txn, tenant.id, vec![route]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Let a version route its channel. It takes the channel from whichever other route has it.
#[utoipa::path(post, path = "/v1/routes/{route}/activate", tag = "routes", operation_id = "activateRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    request_body = Activation,
    responses(
        (status = 200, description = "It is active.", body = RouteAnswer),
        (status = 409, description = "A connection of it is gone.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(Activation { version }): Json<Activation>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let wanted = route_version_get(&mut txn, tenant.id, route.id, version).await?;
    let wanted = wanted.ok_or_else(|| Problem::field("/version", "unknown_version", "does not exist"))?;
    let previous = if route.active_version == Some(version) { route.previous_version } else { route.active_version };
    put_in_service(&mut txn, tenant.id, &route, &wanted, previous).await?;
    let answer = reread(&mut txn, tenant.id, route.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok(Json(answer))
}

/// Return to the version that was active before; the two change places.
#[utoipa::path(post, path = "/v1/routes/{route}/rollback", tag = "routes", operation_id = "rollbackRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    responses(
        (status = 200, description = "The version before is active.", body = RouteAnswer),
        (status = 409, description = "There is none, or a connection of it is gone.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let previous = route.previous_version.ok_or_else(no_previous)?;
    let wanted = route_version_get(&mut txn, tenant.id, route.id, previous).await?.ok_or_else(no_previous)?;
    put_in_service(&mut txn, tenant.id, &route, &wanted, route.active_version).await?;
    let answer = reread(&mut txn, tenant.id, route.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok(Json(answer))
}

/// Makes a version the active one. Its connections are locked first, so that none is deleted
/// meanwhile.
async fn put_in_service(
    db: &mut Db,
    tenant: TenantId,
    route: &RouteRow,
    wanted: &RouteVersion,
    previous: Option<i32>,
) -> Result<(), Problem> {
    let mut connections: Vec<_> = wanted.spec.candidates.iter().map(|candidate| candidate.connection).collect();
    connections.sort();
    for connection in connections {
        if !connection_lock(db, tenant, connection).await? {
            let detail = format!("the connection {connection} of this version was deleted: make a version without it");
            return Err(Problem::conflict("connection_gone", detail));
        }
    }
    route_deactivate_others(db, tenant, route.id, &route.channel).await?;
    route_activate(db, tenant, route.id, Some(wanted.version), previous).await?;
    Ok(tenant_config_grow(db, tenant).await?)
}

impl Spec {
    /// Returns the specification with ids in place of uids; its faults go to `fields`.
    async fn checked(
        self,
        app: &App,
        db: &mut Db,
        tenant: TenantId,
        channel: Option<&Channel>,
        fields: &mut Fields,
    ) -> Result<RouteSpec, Problem> {
        let count = (1..=MOST_CANDIDATES).contains(&self.candidates.len());
        let mut candidates: Vec<domain::Candidate> = Vec::with_capacity(self.candidates.len().min(MOST_CANDIDATES));
        for (index, candidate) in self.candidates.into_iter().take(MOST_CANDIDATES).enumerate() {
            let connection = match usable(app, db, tenant, channel, &candidate.connection).await? {
                Ok(id) => id,
                Err((code, detail)) => {
                    candidate_is_bad(fields, index, code, detail);
                    // Keeps the places of those behind it; the route is refused anyway.
                    ConnectionId::new()
                }
            };
            if candidates.iter().any(|it| it.connection == connection) {
                candidate_is_bad(fields, index, "repeated", "is listed before");
            }
            candidates.push(candidate.into_domain(connection));
        }
        let overrides = overrides::checked(self.overrides, db, &["spec"], fields).await?;
        let known = match self.retry.rule() {
            Some(rule) => decides_retries(app, tenant, rule).await?,
            None => true,
        };
        fields.within("spec", |fields| fields.within("retry", |fields| self.retry.check_rules(known, fields)));
        let (retry, retry_limits) = self.retry.into_domain();
        let spec = RouteSpec {
            candidates,
            strategy: self.strategy.into(),
            max_cost: self.max_cost.map(Cost::from),
            min_success_rate: self.min_success_rate,
            retry,
            retry_limits,
            overrides,
            fallback: self.fallback.unwrap_or(true),
            on_unknown: self.on_unknown.map(domain::OnUnknown::from),
        };
        fields.within("spec", |fields| {
            fields.check(count, "candidates", "wrong_length", || "must list 1 to 20 candidates".to_owned());
            check_numbers(&spec, fields);
        });
        Ok(spec)
    }
}

impl Candidate {
    fn into_domain(self, connection: ConnectionId) -> domain::Candidate {
        domain::Candidate {
            connection,
            weight: self.weight.unwrap_or(1),
            cost: self.cost.map(Cost::from),
            max_cost: self.max_cost.map(Cost::from),
        }
    }
}

/// Checks numbers against their limits.
fn check_numbers(spec: &RouteSpec, fields: &mut Fields) {
    let rate = spec.min_success_rate.is_none_or(|rate| (0.0..=1.0).contains(&rate));
    fields.check(rate, "min_success_rate", "out_of_range", || "must be 0 to 1".to_owned());
    let costs = spec.candidates.iter().flat_map(|it| [&it.cost, &it.max_cost]);
    let currency = [&spec.max_cost].into_iter().chain(costs).flatten().map(|it| it.currency.as_str()).next();
    check_money(fields, "max_cost", spec.max_cost.as_ref(), currency);
    fields.each("candidates", &spec.candidates, |fields, candidate| {
        fields.check(candidate.weight <= HIGHEST_WEIGHT, "weight", "out_of_range", || "must be at most 100".to_owned());
        check_money(fields, "cost", candidate.cost.as_ref(), currency);
        check_money(fields, "max_cost", candidate.max_cost.as_ref(), currency);
    });
    fields.within("retry", |fields| match &spec.retry {
        RetryPolicy::Custom { .. } => fields.within("otherwise", |fields| check_retry(fields, spec)),
        _ => check_retry(fields, spec),
    });
}

fn check_retry(fields: &mut Fields, spec: &RouteSpec) {
    for (field, detail) in spec.retry.problems() {
        fields.check(false, field, "out_of_range", || format!("must be {detail}"));
    }
    let RetryLimits { max_elapsed_ms, budget } = &spec.retry_limits;
    let in_time = max_elapsed_ms.is_none_or(|ms| (1..=LONGEST_ELAPSED_MS).contains(&ms));
    fields.check(in_time, "max_elapsed_ms", "out_of_range", || format!("must be 1 to {LONGEST_ELAPSED_MS} (72 hours)"));
    fields.within("budget", |fields| {
        for (field, detail) in budget.problems() {
            fields.check(false, field, "out_of_range", || format!("must be {detail}"));
        }
    });
}

/// Amounts of a route are compared with each other, so they are in one currency.
fn check_money(fields: &mut Fields, name: &str, money: Option<&Cost>, currency: Option<&str>) {
    let Some(money) = money else { return };
    fields.within(name, |fields| {
        let amount = (0..=HIGHEST_COST).contains(&money.micros);
        fields.check(amount, "micros", "out_of_range", || "must be 0 to 1000000000000".to_owned());
        let named = money.currency.len() == 3 && money.currency.bytes().all(|it| it.is_ascii_uppercase());
        fields.check(named, "currency", "wrong_format", || "must be three capital letters, such as `USD`".to_owned());
        let one = !named || Some(money.currency.as_str()) == currency;
        fields.check(one, "currency", "mixed_currencies", || {
            "must be the currency of the route's other amounts".to_owned()
        });
    });
}

fn candidate_is_bad(fields: &mut Fields, index: usize, code: &str, detail: &str) {
    fields.elsewhere(format!("/spec/candidates/{index}/connection"), code, detail);
}

/// The id of a connection that can serve the channel, or why it can't.
async fn usable(
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    channel: Option<&Channel>,
    name: &str,
) -> Result<Result<ConnectionId, (&'static str, &'static str)>, Problem> {
    let connection = match connection::named(db, tenant, name).await {
        Ok(connection) => connection,
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => {
            return Ok(Err(("unknown_connection", "does not exist: GET /v1/connections lists the connections")));
        }
        Err(problem) => return Err(problem),
    };
    let Some(serving) = app.providers.serving(&connection.provider) else {
        return Ok(Err(("provider_not_serving", "must be of a provider with a version that serves")));
    };
    let channels = &serving.component.descriptor().channels;
    let served = channel.is_none_or(|channel| channels.iter().any(|name| name == channel.as_str()));
    Ok(if served {
        Ok(connection.id)
    } else {
        Err(("wrong_channel", "must be of a provider that serves this channel"))
    })
}

/// The route of an id or uid.
async fn named(db: &mut Db, tenant: TenantId, name: &str) -> Result<RouteRow, Problem> {
    if name.chars().any(char::is_control) {
        return Err(missing());
    }
    route_find(db, tenant, name.parse().ok(), name).await?.ok_or_else(missing)
}

/// The same, kept from changing until the transaction ends.
async fn locked(db: &mut Db, tenant: TenantId, name: &str) -> Result<RouteRow, Problem> {
    let id = named(db, tenant, name).await?.id;
    Ok(route_lock(db, tenant, id).await?)
}

async fn reread(db: &mut Db, tenant: TenantId, id: RouteId) -> Result<RouteAnswer, Problem> {
    let route = route_lock(db, tenant, id).await?;
    Ok(answers(db, tenant, vec![route]).await?.remove(0))
}

async fn answers(db: &mut Db, tenant: TenantId, rows: Vec<RouteRow>) -> store::Result<Vec<RouteAnswer>> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut versions: BTreeMap<RouteId, Vec<VersionAnswer>> = BTreeMap::new();
    for version in route_versions(db, tenant, &ids).await? {
        versions.entry(version.route).or_default().push(version.into());
    }
    Ok(rows.into_iter().map(|row| answer(versions.remove(&row.id).unwrap_or_default(), row)).collect())
}

fn answer(versions: Vec<VersionAnswer>, row: RouteRow) -> RouteAnswer {
    RouteAnswer {
        id: row.id.to_string(),
        uid: row.uid,
        channel: row.channel.as_str().to_owned(),
        active_version: row.active_version,
        previous_version: row.previous_version,
        latest_version: versions.first().map(|version| version.version),
        versions,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

impl From<RouteVersion> for VersionAnswer {
    fn from(row: RouteVersion) -> Self {
        Self { version: row.version, spec: row.spec.into(), created_at: row.created_at }
    }
}

impl From<RouteSpec> for Spec {
    fn from(spec: RouteSpec) -> Self {
        Self {
            candidates: spec.candidates.into_iter().map(Candidate::from).collect(),
            strategy: spec.strategy.into(),
            max_cost: spec.max_cost.map(Money::from),
            min_success_rate: spec.min_success_rate,
            retry: Retry::shown(spec.retry, spec.retry_limits),
            overrides: overrides::shown(spec.overrides),
            fallback: Some(spec.fallback),
            on_unknown: spec.on_unknown.map(OnUnknown::from),
        }
    }
}

impl From<domain::Candidate> for Candidate {
    fn from(it: domain::Candidate) -> Self {
        Self {
            connection: it.connection.to_string(),
            weight: Some(it.weight),
            cost: it.cost.map(Money::from),
            max_cost: it.max_cost.map(Money::from),
        }
    }
}

impl From<Money> for Cost {
    fn from(Money { micros, currency }: Money) -> Self {
        Self { micros, currency }
    }
}

impl From<Cost> for Money {
    fn from(Cost { micros, currency }: Cost) -> Self {
        Self { micros, currency }
    }
}

impl From<Strategy> for domain::Strategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Primary {} => Self::Primary,
            Strategy::RoundRobin {} => Self::RoundRobin,
            Strategy::WeightedRandom {} => Self::WeightedRandom,
            Strategy::LeastCost {} => Self::LeastCost,
            Strategy::HighestReliability {} => Self::HighestReliability,
        }
    }
}

impl From<domain::Strategy> for Strategy {
    fn from(strategy: domain::Strategy) -> Self {
        match strategy {
            domain::Strategy::Primary => Self::Primary {},
            domain::Strategy::RoundRobin => Self::RoundRobin {},
            domain::Strategy::WeightedRandom => Self::WeightedRandom {},
            domain::Strategy::LeastCost => Self::LeastCost {},
            domain::Strategy::HighestReliability => Self::HighestReliability {},
        }
    }
}

impl Default for Strategy {
    fn default() -> Self {
        domain::Strategy::default().into()
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::shown(RetryPolicy::default(), RetryLimits::default())
    }
}

/// Whether a script of this name is live and has the hook `retry`.
async fn decides_retries(app: &App, tenant: TenantId, script: &str) -> Result<bool, Problem> {
    let config = app.tenant_configs.reload(tenant).await?;
    let has = |book: &Rulebook| book.scripts.iter().any(|it| it.name == script && it.has(Hook::Retry));
    Ok(config.rulebook.as_deref().is_some_and(has))
}

impl Retry {
    /// The rule that it leaves the decision to.
    fn rule(&self) -> Option<&str> {
        match self {
            Self::Custom { rule, .. } => Some(rule),
            _ => None,
        }
    }

    /// Refuses a rule that does not exist, and one inside another.
    fn check_rules(&self, known: bool, fields: &mut Fields) {
        let Self::Custom { otherwise, .. } = self else { return };
        fields.check(known, "rule", "unknown_rule", || {
            "must name a script that is live and has the hook `retry`".to_owned()
        });
        let plain = !matches!(**otherwise, Self::Custom { .. });
        fields.check(plain, "otherwise", "not_a_choice", || "must not leave it to a rule again".to_owned());
    }

    fn into_domain(self) -> (RetryPolicy, RetryLimits) {
        let (policy, max_elapsed_ms, budget) = match self {
            Self::None {} => (RetryPolicy::None, None, None),
            Self::Linear { delay_ms, max_attempts, max_elapsed_ms, budget } => {
                (RetryPolicy::Linear { delay_ms, max_attempts }, max_elapsed_ms, budget)
            }
            Self::Exponential { initial_ms, max_ms, factor, jitter, max_attempts, max_elapsed_ms, budget } => {
                let (factor, jitter) = (factor.unwrap_or(2.0), jitter.unwrap_or(0.5));
                let policy = RetryPolicy::Exponential { initial_ms, max_ms, factor, jitter, max_attempts };
                (policy, max_elapsed_ms, budget)
            }
            Self::Schedule { delays_ms, max_elapsed_ms, budget } => {
                (RetryPolicy::Schedule { delays_ms }, max_elapsed_ms, budget)
            }
            Self::Custom { rule, otherwise } => {
                let (otherwise, limits) = otherwise.into_domain();
                return (RetryPolicy::Custom { rule, otherwise: Box::new(otherwise) }, limits);
            }
        };
        (policy, RetryLimits { max_elapsed_ms, budget: budget.map(Into::into).unwrap_or_default() })
    }

    fn shown(policy: RetryPolicy, limits: RetryLimits) -> Self {
        let (max_elapsed_ms, budget) = (limits.max_elapsed_ms, Some(Budget::from(limits.budget)));
        match policy {
            RetryPolicy::None => Self::None {},
            RetryPolicy::Linear { delay_ms, max_attempts } => {
                Self::Linear { delay_ms, max_attempts, max_elapsed_ms, budget }
            }
            RetryPolicy::Exponential { initial_ms, max_ms, factor, jitter, max_attempts } => Self::Exponential {
                initial_ms,
                max_ms,
                factor: Some(factor),
                jitter: Some(jitter),
                max_attempts,
                max_elapsed_ms,
                budget,
            },
            RetryPolicy::Schedule { delays_ms } => Self::Schedule { delays_ms, max_elapsed_ms, budget },
            RetryPolicy::Custom { rule, otherwise } => {
                Self::Custom { rule, otherwise: Box::new(Self::shown(*otherwise, limits)) }
            }
        }
    }
}

impl From<Budget> for retry::budget::RetryBudget {
    fn from(budget: Budget) -> Self {
        let left_out = Self::default();
        Self {
            share: budget.share.unwrap_or(left_out.share),
            min_per_second: budget.min_per_second.unwrap_or(left_out.min_per_second),
        }
    }
}

impl From<retry::budget::RetryBudget> for Budget {
    fn from(budget: retry::budget::RetryBudget) -> Self {
        Self { share: Some(budget.share), min_per_second: Some(budget.min_per_second) }
    }
}

impl From<OnUnknown> for domain::OnUnknown {
    fn from(what: OnUnknown) -> Self {
        match what {
            OnUnknown::Retry => Self::Retry,
            OnUnknown::Hold => Self::Hold,
        }
    }
}

impl From<domain::OnUnknown> for OnUnknown {
    fn from(what: domain::OnUnknown) -> Self {
        match what {
            domain::OnUnknown::Retry => Self::Retry,
            domain::OnUnknown::Hold => Self::Hold,
        }
    }
}

fn refusal(fields: Fields) -> Problem {
    Problem::fields(fields.into_problems())
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Conflict { constraint } if constraint == "route_uid" => {
            Problem::conflict("uid_taken", "another route has this uid")
        }
        other => other.into(),
    }
}

fn missing() -> Problem {
    Problem::not_found("route")
}

fn no_previous() -> Problem {
    Problem::conflict("no_previous_version", "no other version of this route was active before")
}
