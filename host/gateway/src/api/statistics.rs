//! `/v1/stats`: accepted messages, their states, times and costs. Read from roll-ups, never from the ledger.

use std::collections::BTreeMap;

use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    auth::{MessagesRead, Operator, Tenant},
    json::Json,
    message::CostAnswer,
    problem::Problem,
    request::{Query, short_text},
};
use crate::{
    app::{
        names,
        statistics::{self, FiguresGroup, FiguresSeries, StatQuery, Statistics},
    },
    clock,
};
use angarium_domain::{
    ids::{ConnectionId, RouteId, TenantId},
    message::Channel,
    provider::Cost,
    statistics::{Dimension, Figures, Grain, Latency},
};

/// The most buckets of one answer: two days of minutes, ninety days of hours.
const MOST_BUCKETS: i64 = 3_000;

/// Which statistics.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`Asked` reads them; this lists them in the document")]
pub struct StatParams {
    /// From the bucket that holds this time on; 24 hours before `to`, if left out.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// To the bucket that holds this time; now, if left out.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<String>,
    /// Minutes go back 48 hours, hours 90 days; at most 3,000 buckets. If left out: minutes for two hours, hours for a
    /// week, days beyond.
    #[param(inline)]
    bucket: Option<Grain>,
    /// Groups by this; the hundred largest groups.
    #[param(inline)]
    group_by: Option<Dimension>,
    /// Only this channel.
    channel: Option<String>,
    /// Only this connection: its id or uid.
    connection: Option<String>,
    /// Only this provider.
    provider: Option<String>,
    /// Only this route: its id or uid.
    route: Option<String>,
    /// Only this unified code.
    code: Option<String>,
}

/// The figures of a range of time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Stats)]
pub struct StatsAnswer {
    /// The first bucket's beginning.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// The last bucket's end.
    #[schema(value_type = String, format = DateTime)]
    to: Timestamp,
    /// `minute`, `hour` or `day`.
    bucket: &'static str,
    totals: FiguresAnswer,
    /// One entry a bucket, the oldest first; an empty bucket is left out.
    series: Vec<BucketAnswer>,
    /// With `group_by`: the groups, those with the most in them first.
    groups: Option<Vec<GroupAnswer>>,
    /// How many further groups there are.
    groups_left_out: usize,
}

/// One bucket of time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatsBucket)]
pub struct BucketAnswer {
    /// Its beginning.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[serde(flatten)]
    figures: FiguresAnswer,
}

/// One value of the property in `group_by`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatsGroup)]
pub struct GroupAnswer {
    /// The channel, the connection's id, …; null for entries without one, such as attempts for which no connection
    /// could be asked.
    key: Option<String>,
    /// The `uid` of a connection or route, the name of a tenant.
    name: Option<String>,
    /// Of a route.
    version: Option<i32>,
    totals: FiguresAnswer,
    series: Vec<BucketAnswer>,
}

/// The figures: messages and their states count in the bucket of their acceptance; attempts in that of their end.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Figures)]
pub struct FiguresAnswer {
    /// Messages; null if the grouping is unknown at their acceptance.
    accepted: Option<i64>,
    /// Further channels that began, of messages that name several; null as `accepted`.
    further: Option<i64>,
    /// Deliveries that have not ended: scheduled, queued, being sent. A message has one, and one more for each further
    /// channel that began.
    open: Option<i64>,
    /// Deliveries that have ended, by the state they ended in.
    #[schema(example = json!({"sent": 940, "failed": 3}))]
    states: BTreeMap<&'static str, i64>,
    /// The part that is `sent` or `delivered` of those that ended and were not canceled.
    success_rate: Option<f64>,
    /// The part that is `delivered` of those that are `sent`, `delivered` or `bounced`; null without any receipt.
    delivery_rate: Option<f64>,
    attempts: i64,
    /// Attempts by what their answers meant.
    #[schema(example = json!({"accepted": 940, "rejected_transient": 12}))]
    dispositions: BTreeMap<&'static str, i64>,
    /// Attempts that the retry policy or a person asked for.
    retries: i64,
    /// Attempts of a further candidate, by the reason.
    #[schema(example = json!({"primary_failed": 9}))]
    fallbacks: BTreeMap<String, i64>,
    /// The latency of the attempts that asked a provider; null if there was none.
    latency_ms: Option<LatencyAnswer>,
    /// One entry a currency.
    cost: Vec<CostAnswer>,
}

/// The time within which half, nine tenths and ninety-nine hundredths of the attempts ended, in milliseconds. Read off
/// a histogram: each is off by at most 9.1 %; a time below 0.125 ms reads as 0.0625.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LatencyMs)]
pub struct LatencyAnswer {
    p50: f64,
    p90: f64,
    p99: f64,
}

/// Show statistics: counts, rates, latencies and cost, as totals and as a series.
///
/// They agree with the ledger at every moment.
#[utoipa::path(get, path = "/v1/stats", tag = "statistics", operation_id = "getStats",
    params(StatParams),
    responses((status = 200, description = "The figures.", body = StatsAnswer)))]
pub async fn show(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<StatsAnswer>, Problem> {
    let asked = asked(&mut query, Some(tenant.id), &app).await?;
    query.finish()?;
    let found = statistics::of_tenant(&app, tenant.id, &asked).await?;
    Ok(Json(StatsAnswer::new(&asked, found)))
}

/// Show statistics of all tenants, or of one.
#[utoipa::path(get, path = "/v1/operator/stats", tag = "statistics", operation_id = "getOperatorStats",
    params(StatParams, ("tenant" = Option<String>, Query, description = "Only this tenant: its name.")),
    responses((status = 200, description = "The figures.", body = StatsAnswer)))]
pub async fn show_all(
    _: Tenant<Operator>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<StatsAnswer>, Problem> {
    let tenant = named_tenant(&mut query, &app).await?;
    let mut asked = asked(&mut query, None, &app).await?;
    query.finish()?;
    asked.tenant = tenant;
    let found = statistics::of_all(&app, &asked).await?;
    Ok(Json(StatsAnswer::new(&asked, found)))
}

async fn named_tenant(query: &mut Query, app: &App) -> Result<Option<TenantId>, Problem> {
    let Some(name) = query.take("tenant", short_text) else { return Ok(None) };
    let found = names::tenant_id(app, &name).await?;
    if found.is_none() {
        query.refuse("tenant", "does not exist");
    }
    Ok(found)
}

/// Reads the query; its `finish` reports the faults.
async fn asked(query: &mut Query, tenant: Option<TenantId>, app: &App) -> Result<StatQuery, Problem> {
    let now = clock::now();
    let (grain, from, to) = range(query, now);
    let by = query.take("group_by", |text| dimension(text, tenant.is_none()));
    let channel = query.take("channel", |text| text.parse::<Channel>().map_err(|error| error.to_string()));
    let connection = connection(query, tenant, app).await?;
    let route = route(query, tenant, app).await?;
    Ok(StatQuery {
        tenant,
        grain,
        from,
        to,
        by,
        channel: channel.map(|it| it.as_str().to_owned()),
        connection,
        provider: query.take("provider", short_text),
        route,
        code: query.take("code", short_text),
    })
}

fn dimension(text: &str, operator: bool) -> Result<Dimension, String> {
    let offered = || Dimension::ALL.into_iter().filter(|it| operator || *it != Dimension::Tenant);
    let words = || offered().map(|it| format!("`{}`", it.as_str())).collect::<Vec<_>>().join(", ");
    offered().find(|it| it.as_str() == text).ok_or_else(|| format!("must be one of {}", words()))
}

/// The buckets that are asked for.
fn range(query: &mut Query, now: Timestamp) -> (Grain, Timestamp, Timestamp) {
    let time = |text: &str| {
        let time = text.parse::<Timestamp>().map_err(|_| "must be a time such as `2027-01-31T09:00:00Z`".to_owned())?;
        let tellable = (0..=253_370_764_800).contains(&time.as_second());
        tellable.then_some(time).ok_or_else(|| "must lie in the years 1970 to 9998".to_owned())
    };
    let to = query.take("to", time).unwrap_or(now);
    let from = query.take("from", time).unwrap_or(to - SignedDuration::from_hours(24));
    let chosen = query.take("bucket", |text| text.parse::<Grain>().map_err(|error| error.to_string()));
    let grain = chosen.unwrap_or_else(|| fitting(from, to, now));
    let (from, to) = (grain.floor(from), grain.ceil(to));
    let buckets = to.duration_since(from).as_secs() / grain.seconds();
    if buckets < 1 {
        query.refuse("from", "must be before `to`");
    } else if buckets > MOST_BUCKETS {
        let name = grain.as_str();
        query.refuse("from", format!("must be at most {MOST_BUCKETS} buckets of a {name} before `to` (got {buckets})"));
    } else if let Some(kept) = grain.kept().filter(|kept| from < grain.floor(now - *kept)) {
        let (name, hours) = (grain.as_str(), kept.as_hours());
        query.refuse(
            "from",
            format!("must lie within the {hours} hours for which buckets of a {name} are kept: take longer ones"),
        );
    }
    (grain, from, to)
}

/// The finest buckets that a chart of this range can show.
fn fitting(from: Timestamp, to: Timestamp, now: Timestamp) -> Grain {
    let length = to.duration_since(from);
    let fits = |grain: Grain, hours| {
        length <= SignedDuration::from_hours(hours) && grain.kept().is_none_or(|kept| from >= now - kept)
    };
    if fits(Grain::Minute, 2) {
        Grain::Minute
    } else if fits(Grain::Hour, 7 * 24) {
        Grain::Hour
    } else {
        Grain::Day
    }
}

/// A connection's id, be the connection there or deleted, or the uid of a living one.
async fn connection(query: &mut Query, tenant: Option<TenantId>, app: &App) -> Result<Option<ConnectionId>, Problem> {
    let Some(name) = query.take("connection", short_text) else { return Ok(None) };
    let found = match tenant {
        Some(tenant) => names::connection_id(app, tenant, &name).await?,
        None => name.parse().ok(),
    };
    if found.is_none() {
        query.refuse("connection", "does not exist: give the id of a connection, or the uid of one of yours");
    }
    Ok(found)
}

async fn route(query: &mut Query, tenant: Option<TenantId>, app: &App) -> Result<Option<RouteId>, Problem> {
    let Some(name) = query.take("route", short_text) else { return Ok(None) };
    let found = match tenant {
        Some(tenant) => names::route_id(app, tenant, &name).await?,
        None => name.parse().ok(),
    };
    if found.is_none() {
        query.refuse("route", "does not exist: give the id of a route, or the uid of one of yours");
    }
    Ok(found)
}

impl StatsAnswer {
    fn new(query: &StatQuery, found: Statistics) -> Self {
        let (totals, series) = answers(found.whole, found.counts_accepted);
        Self {
            from: query.from,
            to: query.to,
            bucket: query.grain.as_str(),
            totals,
            series,
            groups: found.groups.map(|groups| groups.into_iter().map(GroupAnswer::from).collect()),
            groups_left_out: found.groups_left_out,
        }
    }
}

impl From<FiguresGroup> for GroupAnswer {
    fn from(group: FiguresGroup) -> Self {
        let (totals, series) = answers(group.series, group.counts_accepted);
        Self { key: group.key, name: group.name, version: group.version, totals, series }
    }
}

fn answers(series: FiguresSeries, with_accepted: bool) -> (FiguresAnswer, Vec<BucketAnswer>) {
    let bucket = |(at, figures)| BucketAnswer { at, figures: FiguresAnswer::new(figures, with_accepted) };
    let buckets = series.buckets.into_iter().map(bucket).collect();
    (FiguresAnswer::new(series.totals, with_accepted), buckets)
}

impl FiguresAnswer {
    fn new(figures: Figures, with_accepted: bool) -> Self {
        let (success_rate, delivery_rate) = (figures.success_rate(), figures.delivery_rate());
        let open = figures.open();
        let cost = |(currency, micros)| CostAnswer::from(Cost { micros, currency });
        Self {
            accepted: with_accepted.then_some(figures.accepted),
            further: with_accepted.then_some(figures.further),
            open: with_accepted.then_some(open),
            states: figures.states,
            success_rate,
            delivery_rate,
            attempts: figures.attempts,
            dispositions: figures.dispositions,
            retries: figures.retries,
            fallbacks: figures.fallbacks,
            latency_ms: LatencyAnswer::of(&figures.latency),
            cost: figures.costs.into_iter().map(cost).collect(),
        }
    }
}

impl LatencyAnswer {
    /// `None` when nothing was measured.
    pub fn of(latency: &Latency) -> Option<Self> {
        let part = |part| latency.quantile(part);
        Some(Self { p50: part(0.5)?, p90: part(0.9)?, p99: part(0.99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_has_buckets_that_a_chart_can_show() {
        let now = at("2026-06-30T12:00:00Z");
        for (from, to, grain) in [
            ("2026-06-30T11:00:00Z", "2026-06-30T12:00:00Z", Grain::Minute),
            ("2026-06-29T12:00:00Z", "2026-06-30T12:00:00Z", Grain::Hour),
            ("2026-05-31T12:00:00Z", "2026-06-30T12:00:00Z", Grain::Day),
            // Minutes and hours of then are no longer kept.
            ("2026-06-01T11:00:00Z", "2026-06-01T12:00:00Z", Grain::Hour),
            ("2025-06-01T11:00:00Z", "2025-06-01T12:00:00Z", Grain::Day),
        ] {
            assert_eq!(fitting(at(from), at(to), now), grain, "{from}");
        }
    }

    #[test]
    fn only_an_operator_tells_tenants_apart() {
        assert_eq!(dimension("tenant", true), Ok(Dimension::Tenant));
        assert!(dimension("tenant", false).unwrap_err().ends_with("`code`"));
    }
}
