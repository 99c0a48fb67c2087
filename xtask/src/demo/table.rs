//! The table of every attempt.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::scenario::Outcome;

/// One row an attempt, in the order of the messages.
pub fn render(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["message", "channel", "provider", "try", "status", "ms", "cost", "reason"]);
    for outcome in outcomes {
        for attempt in &outcome.attempts {
            table.add_row(row(outcome.title, attempt));
        }
        if outcome.attempts.is_empty() {
            table.add_row([outcome.title, "", "", "", &outcome.state, "", "", ""]);
        }
    }
    table.to_string()
}

fn row(title: &str, attempt: &Value) -> [String; 8] {
    let connection = [&attempt["connection_uid"], &attempt["connection"]].into_iter().find_map(Value::as_str);
    [
        title.to_owned(),
        text(&attempt["channel"]),
        format!("{} ({})", text(&attempt["provider"]), connection.unwrap_or("?")),
        format!("{} {}", text(&attempt["number"]), text(&attempt["trigger"])),
        status(attempt),
        text(&attempt["duration_ms"]),
        cost(&attempt["cost"]),
        reason(attempt),
    ]
}

fn status(attempt: &Value) -> String {
    let disposition = text(&attempt["disposition"]);
    match attempt["status"].as_u64() {
        Some(status) => format!("{disposition} {status}"),
        None => disposition,
    }
}

fn cost(cost: &Value) -> String {
    match cost["micros"].as_f64() {
        Some(micros) => format!("{:.4} {}", micros / 1e6, text(&cost["currency"])),
        None => "–".into(),
    }
}

/// Returns the attempt's fallback reason, else its answer's text.
fn reason(attempt: &Value) -> String {
    let said = ["fallback_reason", "detail", "unified_code", "code"];
    let accepted = attempt["disposition"] == "accepted";
    let shown = if accepted { &said[..1] } else { &said[..] };
    shown.iter().find_map(|name| attempt[*name].as_str()).unwrap_or("").to_owned()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            number.as_f64().map_or_else(String::new, |number| format!("{}", (number * 10.0).round() / 10.0))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_attempt_is_a_row() {
        let attempt = json!({
            "number": 2, "trigger": "fallback", "channel": "sms", "connection": "conn_1", "connection_uid": "backup",
            "provider": "sms-twilio", "duration_ms": 12.345, "status": 201, "disposition": "accepted",
            "cost": { "micros": 7900, "currency": "USD" }, "fallback_reason": "primary_failed", "detail": "queued",
        });
        let expected =
            ["m", "sms", "sms-twilio (backup)", "2 fallback", "accepted 201", "12.3", "0.0079 USD", "primary_failed"];
        assert_eq!(row("m", &attempt), expected.map(str::to_owned));
    }
}
