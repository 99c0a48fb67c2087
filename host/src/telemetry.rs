//! Logs and metrics. Set up once, by whoever owns the process; nothing here knows what is logged.

use std::{io, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

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
}

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

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
        LogFormat::Text => builder.finish().try_init(),
    }
    .map_err(|error| TelemetryError::Logs(error.to_string()))
}

/// Records the process's metrics from here on; the handle renders them for Prometheus.
///
/// # Errors
/// When the process has a recorder already.
pub fn metrics_start() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)
        .map_err(|error| TelemetryError::Metrics(error.to_string()))?
        .build_recorder();
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
