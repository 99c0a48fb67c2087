//! Logs, metrics and traces. Set up once, by whoever owns the process; nothing here knows what is logged.

mod traces;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

pub use self::traces::{Side, Span, Tracer, Value};
use crate::config::{Log, LogFormat};

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

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Upper bounds of `angarium_ledger_batch_size`, in outcomes.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// Sends logs to the standard error stream: standard output belongs to a command's answer.
///
/// # Errors
/// When the filter is malformed, or the process has a subscriber already.
pub fn logs_start(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| TelemetryError::Filter { filter: log.filter.clone(), detail: error.to_string() })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
    }
    .map_err(|error| TelemetryError::Logs(error.to_string()))
}

/// Records the process's metrics from here on; the handle renders them for Prometheus.
///
/// # Errors
/// When the process has a recorder already.
pub fn metrics_start() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = builder().map_err(|error| TelemetryError::Metrics(error.to_string()))?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| TelemetryError::Metrics(error.to_string()))?;
    let kept = handle.clone();
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(5));
            kept.run_upkeep();
        }
    })?;
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("angarium_ledger_batch_size".to_owned()), &BATCH_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_counted_in_outcomes_and_not_in_seconds() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::histogram!("angarium_ledger_batch_size").record(150.0));
        let text = handle.render();
        assert!(text.contains("angarium_ledger_batch_size_bucket{le=\"100\"} 0"), "{text}");
        assert!(text.contains("angarium_ledger_batch_size_bucket{le=\"200\"} 1"), "{text}");
        assert!(!text.contains("0.0005"), "{text}");
    }
}
