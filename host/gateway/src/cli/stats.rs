//! `angarium stats`

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    output::{Column, Output},
};
use crate::clock;

/// Counts, rates, latencies and cost.
#[derive(Debug, Args)]
pub struct Stats {
    /// How far back: `30m`, `24h`, `30d`.
    #[arg(long, default_value = "24h", value_parser = span, conflicts_with = "from")]
    since: SignedDuration,
    /// From this time, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// To this time; now, if left out.
    #[arg(long)]
    to: Option<String>,
    /// Tell these apart.
    #[arg(long)]
    by: Option<By>,
    /// Show each of these.
    #[arg(long)]
    bucket: Option<Bucket>,
    /// Only this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only this connection: its id or uid.
    #[arg(long)]
    connection: Option<String>,
    /// Only this provider.
    #[arg(long)]
    provider: Option<String>,
    /// Only this route: its id or uid.
    #[arg(long)]
    route: Option<String>,
    /// Only this unified code.
    #[arg(long)]
    code: Option<String>,
    /// Of all tenants; needs a key with the scope `operator`.
    #[arg(long)]
    all_tenants: bool,
    /// Of this tenant; needs a key with the scope `operator`.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Channel,
    Connection,
    Provider,
    Route,
    Code,
    /// With `--all-tenants`.
    Tenant,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bucket {
    Minute,
    Hour,
    Day,
}

const FIGURES: [Column<'_>; 10] = [
    ("accepted", "/accepted"),
    ("open", "/open"),
    ("ended", "/ended"),
    ("success", "/success"),
    ("attempts", "/attempts"),
    ("retries", "/retries"),
    ("answers", "/answers"),
    ("p50 ms", "/p50"),
    ("p99 ms", "/p99"),
    ("cost", "/spent"),
];

impl Stats {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let answer = self.client.get(&self.path()).await?;
        if output.json {
            output.one(&answer, &[]);
        } else {
            show(&answer, self.bucket.is_some(), output);
        }
        Ok(())
    }

    fn path(&self) -> String {
        let from = self.from.clone().unwrap_or_else(|| (clock::now() - self.since).to_string());
        let by = self.by.and_then(|by| by.to_possible_value());
        let bucket = self.bucket.and_then(|bucket| bucket.to_possible_value());
        let parameters = [
            ("from", Some(from)),
            ("to", self.to.clone()),
            ("bucket", bucket.map(|it| it.get_name().to_owned())),
            ("group_by", by.map(|it| it.get_name().to_owned())),
            ("channel", self.channel.clone()),
            ("connection", self.connection.clone()),
            ("provider", self.provider.clone()),
            ("route", self.route.clone()),
            ("code", self.code.clone()),
            ("tenant", self.tenant.clone()),
        ];
        let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
        let query: Vec<_> = given.map(|(name, value)| format!("{name}={}", segment(value))).collect();
        let operator = self.all_tenants || self.tenant.is_some();
        format!("/v1/{}stats?{}", if operator { "operator/" } else { "" }, query.join("&"))
    }
}

/// A line for the whole, or one for each group; with buckets, one for each bucket of them.
fn show(answer: &Value, with_buckets: bool, output: &Output) {
    let whole = json!([{"totals": answer["totals"], "series": answer["series"]}]);
    let groups = if answer["groups"].is_array() { &answer["groups"] } else { &whole };
    let groups = groups.as_array().into_iter().flatten();
    let rows: Value = match with_buckets {
        true => groups.flat_map(|group| items(&group["series"]).map(|bucket| row(group, bucket))).collect(),
        false => groups.map(|group| row(group, &group["totals"])).collect(),
    };
    let mut columns: Vec<Column<'_>> = Vec::new();
    if answer["groups"].is_array() {
        columns.push(("group", "/group"));
    }
    if with_buckets {
        columns.push((answer["bucket"].as_str().unwrap_or("at"), "/at"));
    }
    columns.extend(FIGURES);
    output.rows(&rows, &columns);
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn row(group: &Value, figures: &Value) -> Value {
    let mut row = figures.clone();
    row["group"] = json!(group_name(group));
    row["ended"] = json!(counts(&figures["states"]));
    row["answers"] = json!(counts(&figures["dispositions"]));
    row["success"] = json!(percent(&figures["success_rate"]));
    row["p50"] = json!(milliseconds(&figures["latency_ms"]["p50"]));
    row["p99"] = json!(milliseconds(&figures["latency_ms"]["p99"]));
    row["spent"] = items(&figures["cost"]).map(money).collect();
    row
}

fn group_name(group: &Value) -> String {
    let key = group["key"].as_str().unwrap_or("(none)");
    let name = group["name"].as_str().unwrap_or(key);
    match group["version"].as_i64() {
        Some(version) => format!("{name} v{version}"),
        None => name.to_owned(),
    }
}

/// `sent 94, failed 3`
fn counts(object: &Value) -> String {
    let counts = object.as_object().into_iter().flatten();
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// A part of 1, for people.
pub fn percent(part: &Value) -> Option<String> {
    Some(format!("{:.1} %", part.as_f64()? * 100.0))
}

/// A time, for people.
pub fn milliseconds(ms: &Value) -> Option<String> {
    let ms = ms.as_f64()?;
    Some(if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") })
}

fn money(cost: &Value) -> String {
    let micros = cost["micros"].as_i64().unwrap_or_default();
    format!("{:.4} {}", micros as f64 / 1e6, cost["currency"].as_str().unwrap_or_default())
}

pub fn span(text: &str) -> Result<SignedDuration, String> {
    let expected = || "expected a number and `m`, `h` or `d`, such as `24h`".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(expected)?;
    let number: i64 = number.parse().ok().filter(|number| (1..=100_000).contains(number)).ok_or_else(expected)?;
    match unit {
        "m" => Ok(SignedDuration::from_mins(number)),
        "h" => Ok(SignedDuration::from_hours(number)),
        "d" => Ok(SignedDuration::from_hours(24 * number)),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_as_people_write_it() {
        assert_eq!(span("24h"), Ok(SignedDuration::from_hours(24)));
        assert_eq!(span("30d"), Ok(SignedDuration::from_hours(720)));
        for bad in ["", "h", "24", "-1h", "1w", "1é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_reads_by_itself() {
        let figures = json!({"accepted": 7, "states": {"failed": 1, "sent": 6}, "dispositions": {},
            "success_rate": 0.857, "latency_ms": {"p50": 3.21, "p99": 140.2},
            "cost": [{"micros": 7_900, "currency": "USD"}]});
        let row = row(&json!({"key": "route_1", "name": "main", "version": 3}), &figures);
        assert_eq!(row["group"], "main v3");
        assert_eq!(row["ended"], "failed 1, sent 6");
        assert_eq!((&row["success"], &row["p50"], &row["p99"]), (&json!("85.7 %"), &json!("3.2"), &json!("140")));
        assert_eq!(row["spent"], json!(["0.0079 USD"]));
    }
}
