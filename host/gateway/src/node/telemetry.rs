//! Logs, metrics and traces. The process's owner sets them up once; nothing here knows the logged content.

mod measures;
mod traces;

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

pub use self::{
    measures::{
        Lane, METRICS, MeasureKind, Metric, Metrics, breaker_changed, breakers, condition_waits, dead_letters,
        deferred, followed_up, lane, queued, requested, rule_failed, rules_unasked, script_failed, secrets_unavailable,
        shadow_dropped, waited, withheld,
    },
    traces::{Side, Span, Tracer, Value},
};
use crate::node::config::{LogConfig, LogFormat};

/// Why logs or metrics can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "`log.filter` (ANGARIUM_LOG__FILTER) `{filter}` is no filter: {detail}; an example is `info,angarium=debug`"
    )]
    Filter { filter: String, detail: String },
    #[error("logs are set up already: {0}")]
    Logs(String),
    #[error("the thread that looks after the metrics can't start: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics are set up already: {0}")]
    Metrics(String),
    #[error("`telemetry.otlp_endpoint`: traces can't be exported: {0}")]
    Traces(String),
}

/// Sends logs to the standard error stream: standard output belongs to a command's answer.
///
/// # Errors
/// When the filter is malformed, or the process has a subscriber already.
pub fn logs_start(log: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| TelemetryError::Filter { filter: log.filter.clone(), detail: error.to_string() })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
    }
    .map_err(|error| TelemetryError::Logs(error.to_string()))
}
