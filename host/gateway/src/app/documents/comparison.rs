//! The differences of two versions: of JSON by pointer, of a text by the lines between the first and the last that
//! differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::app::fields::escaped;

/// Two versions, and where they differ.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct VersionComparison {
    version: i32,
    against: i32,
    /// In the order of their places; none where the two are alike.
    differences: Vec<VersionDifference>,
}

/// One place where two versions differ.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct VersionDifference {
    /// A JSON pointer (RFC 6901) into the version: `/candidates/0/weight`; of a script `/source` or one into `/cases`.
    pointer: String,
    /// Of a text with several lines: the first line that differs, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// In the version that it is compared with; left out where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    before: Option<Value>,
    /// In this version; left out where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    after: Option<Value>,
}

impl VersionComparison {
    pub fn new(version: i32, against: i32, before: &Value, after: &Value) -> Self {
        let mut differences = Vec::new();
        compare(String::new(), Some(before), Some(after), &mut differences);
        Self { version, against, differences }
    }
}

fn compare(pointer: String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<VersionDifference>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(one)), Some(Value::Object(other))) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                compare(format!("{pointer}/{}", escaped(name)), one.get(name), other.get(name), found);
            }
        }
        (Some(Value::Array(one)), Some(Value::Array(other))) => {
            for index in 0..one.len().max(other.len()) {
                compare(format!("{pointer}/{index}"), one.get(index), other.get(index), found);
            }
        }
        (Some(Value::String(one)), Some(Value::String(other))) if one.contains('\n') || other.contains('\n') => {
            found.push(lines(pointer, one, other));
        }
        (before, after) => {
            found.push(VersionDifference { pointer, line: None, before: before.cloned(), after: after.cloned() });
        }
    }
}

/// Returns what stands between the first and the last line that differ.
fn lines(pointer: String, before: &str, after: &str) -> VersionDifference {
    let (before, after): (Vec<_>, Vec<_>) = (before.split('\n').collect(), after.split('\n').collect());
    let shorter = before.len().min(after.len());
    let head = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
    let tail = before.iter().rev().zip(after.iter().rev()).take_while(|(one, other)| one == other).count();
    let tail = tail.min(shorter - head);
    let between = |lines: &[&str]| Value::String(lines[head..lines.len() - tail].join("\n"));
    VersionDifference { pointer, line: Some(head + 1), before: Some(between(&before)), after: Some(between(&after)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_place_that_differs_is_named_once() {
        let before = json!({"candidates": [{"connection": "a", "weight": 1}], "fallback": true, "max_cost": 5});
        let after = json!({"candidates": [{"connection": "a", "weight": 2}, {"connection": "b"}], "fallback": true});
        let found = serde_json::to_value(VersionComparison::new(2, 1, &before, &after)).unwrap();
        let differences = json!([
            {"pointer": "/candidates/0/weight", "before": 1, "after": 2},
            {"pointer": "/candidates/1", "after": {"connection": "b"}},
            {"pointer": "/max_cost", "before": 5},
        ]);
        assert_eq!(found, json!({"version": 2, "against": 1, "differences": differences}));
        assert!(VersionComparison::new(1, 1, &before, &before).differences.is_empty());
    }

    #[test]
    fn of_a_source_the_lines_between_are_shown() {
        let of = |before: &str, after: &str| {
            let found = VersionComparison::new(2, 1, &json!({"source": before}), &json!({"source": after}));
            let mut found = serde_json::to_value(found).unwrap();
            found["differences"][0].take()
        };
        let changed = of("fn a() {\n  1\n}\n", "fn a() {\n  2\n  3\n}\n");
        assert_eq!(changed, json!({"pointer": "/source", "line": 2, "before": "  1", "after": "  2\n  3"}));
        // Lines that are repeated belong to one end only.
        let grown = of("x\nx", "x\nx\nx");
        assert_eq!(grown, json!({"pointer": "/source", "line": 3, "before": "", "after": "x"}));
    }
}
