//! `angarium rules backtest`

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    CliError,
    client::ApiClient,
    output::{Column, Output},
    rules::{RULES, read, read_json},
};
use crate::clock;

/// Play messages that were sent through rules or a script as they would be; nothing is sent.
#[derive(Debug, Args)]
pub struct Backtest {
    /// A script (`NAME.rhai`), or rules in JSON: one, or a list; as they are, or as `angarium rules get --json` shows
    /// them, and then each takes the place of the rule of its uid or id.
    #[arg(long, value_name = "FILE")]
    rule: PathBuf,
    /// The id or uid of the rule that a single one replaces.
    #[arg(long)]
    of: Option<String>,
    /// The script's name, if the file has another.
    #[arg(long)]
    name: Option<String>,
    /// How far back.
    #[arg(long, default_value = "7d", value_parser = super::stats::span)]
    since: SignedDuration,
    /// The most messages, the latest ones.
    #[arg(long)]
    limit: Option<u32>,
    #[command(flatten)]
    client: ApiClient,
}

const SUMMARY: [Column<'_>; 10] = [
    ("since", "/since"),
    ("complete", "/complete"),
    ("looked at", "/looked_at"),
    ("of them purged", "/purged"),
    ("would have changed", "/changed"),
    ("newly refused", "/refused/newly"),
    ("no longer refused", "/refused/no_longer"),
    ("newly held", "/held/newly"),
    ("no longer held", "/held/no_longer"),
    ("failures", "/failed"),
];
const MOVE: [Column<'_>; 3] = [("from", "/from"), ("to", "/to"), ("messages", "/count")];
const ESTIMATE: [Column<'_>; 5] = [
    ("estimate", "/what"),
    ("before", "/before"),
    ("after", "/after"),
    ("difference", "/difference"),
    ("unknown of", "/unknown"),
];
const EXAMPLE: [Column<'_>; 3] = [("message", "/message"), ("before", "/before"), ("after", "/after")];

impl Backtest {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut body = json!({"since": (clock::now() - self.since).to_string()});
        if let Some(limit) = self.limit {
            body["limit"] = json!(limit);
        }
        if self.rule.extension().is_some_and(|it| it == "rhai") {
            let name = self.name.unwrap_or_else(|| stem(&self.rule));
            body["script"] = json!({"name": name, "source": read(&self.rule)?});
        } else {
            body["rules"] = tried(read_json(&self.rule)?, self.of.as_deref());
        }
        let answer = self.client.post(&format!("{RULES}/backtest"), &body).await?;
        output.one(&answer, &SUMMARY);
        if !output.json {
            show(&answer, output);
        }
        Ok(())
    }
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Rules as the API takes them.
fn tried(file: Value, of: Option<&str>) -> Value {
    let one = |rule: Value| match rule.get("rule") {
        Some(inner) => {
            let known = ["/of", "/uid", "/id"].iter().find_map(|pointer| rule.pointer(pointer)?.as_str());
            json!({"of": of.or(known), "rule": inner})
        }
        None => json!({"of": of, "rule": rule}),
    };
    match file {
        Value::Array(rules) => rules.into_iter().map(one).collect(),
        rule => json!([one(rule)]),
    }
}

fn show(answer: &Value, output: &Output) {
    let moves = answer["moves"].as_array().into_iter().flatten();
    let moves = moves.map(|it| json!({"from": place(&it["from"]), "to": place(&it["to"]), "count": it["count"]}));
    output.rows(&moves.collect(), &MOVE);
    output.rows(&estimates(answer), &ESTIMATE);
    output.rows(&answer["examples"], &EXAMPLE);
}

fn place(place: &Value) -> String {
    if place.is_null() {
        return "refused".to_owned();
    }
    let text = |name: &str| place[name].as_str().unwrap_or("nobody").to_owned();
    match place["connection"].as_str() {
        Some(connection) => format!("{} {connection} ({})", text("channel"), text("provider")),
        None => format!("{} nobody", text("channel")),
    }
}

/// Cost by currency, and the rate of deliveries; what nothing is recorded of is unknown.
fn estimates(answer: &Value) -> Value {
    let number = |value: &Value| value.as_f64().map_or_else(|| "unknown".to_owned(), |it| format!("{it:.4}"));
    let row = |what: String, of: &Value, unknown: &Value| {
        json!({"what": what, "before": number(&of["before"]), "after": number(&of["after"]),
            "difference": number(&of["difference"]), "unknown": unknown})
    };
    let (cost, rate) = (&answer["cost"], &answer["delivery_rate"]);
    let mut rows: Vec<_> = cost["by_currency"].as_array().into_iter().flatten().collect::<Vec<_>>();
    let nothing = json!({});
    if rows.is_empty() {
        rows.push(&nothing);
    }
    let costs = rows.into_iter().map(|it| {
        let currency = it["currency"].as_str().unwrap_or_default();
        row(format!("cost {currency}").trim_end().to_owned(), it, &cost["unknown"])
    });
    costs.chain([row("delivery rate".to_owned(), rate, &rate["unknown"])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_taken_as_they_are_or_as_they_are_shown() {
        let rule = json!({"name": "A", "then": {"sender": "ACME"}});
        assert_eq!(tried(rule.clone(), None), json!([{"of": null, "rule": rule}]));
        assert_eq!(tried(rule.clone(), Some("a")), json!([{"of": "a", "rule": rule}]));
        let shown =
            json!([{"id": "rule_1", "uid": null, "version": 3, "rule": rule}, {"uid": "b", "rule": rule}, rule]);
        let expected = json!([{"of": "rule_1", "rule": rule}, {"of": "b", "rule": rule}, {"of": null, "rule": rule}]);
        assert_eq!(tried(shown, None), expected);
    }

    #[test]
    fn what_is_not_recorded_is_unknown() {
        let answer = json!({"cost": {"by_currency": [], "unknown": 4},
            "delivery_rate": {"before": 0.5, "after": 1.0, "difference": 0.5, "messages": 2, "unknown": 2}});
        let rows = estimates(&answer);
        assert_eq!(
            (&rows[0]["what"], &rows[0]["before"], &rows[0]["unknown"]),
            (&json!("cost"), &json!("unknown"), &json!(4))
        );
        assert_eq!((&rows[1]["difference"], &rows[1]["unknown"]), (&json!("0.5000"), &json!(2)));
    }
}
