//! `/v1/rules/backtest`: the effect of changed rules and scripts on messages that were sent.

use std::collections::BTreeMap;

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    auth::{RulesReadOnMessages, Tenant},
    draft::Draft,
    json::Json,
    problem::{Problem, ProblemBody},
};
use crate::app::backtest::{self, BacktestReport, NewBacktest};
use angarium_rules::backtest::{BacktestPlace, CostChange, Example, Flips, Move, Report};

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
    cost: BacktestCostAnswer,
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
pub struct BacktestCostAnswer {
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
    /// The same members, as the variant has them.
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
    Ok(Json(backtest::run(&app, tenant.id, new, fields).await?.into()))
}

impl From<BacktestReport> for BacktestAnswer {
    fn from(BacktestReport { since, complete, reached, report }: BacktestReport) -> Self {
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
            cost: BacktestCostAnswer {
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
        let place = |BacktestPlace { channel, connection, provider }| PlaceAnswer { channel, connection, provider };
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
        Self { message: message.to_string(), before: difference.live, after: difference.variant }
    }
}
