//! `angarium health`

use clap::Args;
use serde_json::{Value, json};

use super::{
    CliError,
    client::ApiClient,
    connection::paged,
    output::{Column, Output},
    stats::{milliseconds, percent},
};

/// How the connections fare.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The page to show: the cursor of the previous one.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

const COLUMNS: [Column<'_>; 13] = [
    ("connection", "/shown"),
    ("enabled", "/enabled"),
    ("breaker", "/breaker/state"),
    ("closed secrets", "/unavailable_secrets"),
    ("1 h", "/rates/1h"),
    ("provider", "/provider/name"),
    ("version", "/provider/version"),
    ("quarantined", "/quarantined"),
    ("last error", "/error"),
    ("5 min", "/rates/5m"),
    ("24 h", "/rates/24h"),
    ("p50 ms", "/p50"),
    ("p99 ms", "/p99"),
];

impl HealthArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut answer = self.client.get(&paged("/v1/health/providers", self.cursor)).await?;
        if !output.json {
            answer["data"].as_array_mut().into_iter().flatten().for_each(annotate);
        }
        output.list(&answer, &COLUMNS);
        Ok(())
    }
}

/// Adds the table's values: rates as percentages, latencies of the last hour, the error in a line.
fn annotate(health: &mut Value) {
    let shown = if health["uid"].is_null() { &health["connection"] } else { &health["uid"] }.clone();
    let windows = health["windows"].clone();
    let rate = |window: &str| match windows[window]["attempts"].as_i64() {
        Some(attempts) if attempts > 0 => {
            format!("{} of {attempts}", percent(&windows[window]["success_rate"]).unwrap_or_default())
        }
        _ => "-".to_owned(),
    };
    let versions = health["provider"]["quarantined"].as_array().into_iter().flatten();
    let quarantined: Value = versions.map(|it| it["version"].clone()).collect();
    let error = &health["last_error"];
    let part = |name: &str| error[name].as_str().unwrap_or_default();
    let error = (!error.is_null()).then(|| format!("{} {}: {}", part("at"), part("code"), part("detail")));
    let latency = windows["1h"]["latency_ms"].clone();
    health["shown"] = shown;
    health["rates"] = json!({"5m": rate("5m"), "1h": rate("1h"), "24h": rate("24h")});
    health["quarantined"] = quarantined;
    health["p50"] = json!(milliseconds(&latency["p50"]));
    health["p99"] = json!(milliseconds(&latency["p99"]));
    health["error"] = json!(error);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_one_line() {
        let mut health = json!({"connection": "conn_1", "uid": null, "provider": {"quarantined": [{"version": "1.1.0"}]},
            "windows": {"5m": {"attempts": 0}, "1h": {"attempts": 8, "success_rate": 0.5, "latency_ms": {"p50": 4.0}}},
            "last_error": {"at": "2026-01-01T00:00:00Z", "code": "503", "detail": "try later"}});
        annotate(&mut health);
        assert_eq!(health["shown"], "conn_1");
        assert_eq!(health["rates"], json!({"5m": "-", "1h": "50.0 % of 8", "24h": "-"}));
        assert_eq!(health["quarantined"], json!(["1.1.0"]));
        assert_eq!(health["error"], "2026-01-01T00:00:00Z 503: try later");
    }
}
