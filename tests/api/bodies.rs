//! The parser against the document: a value that a schema refuses, at any place of any body, is refused by that place's
//! name, and an accepted one is read.

use std::collections::HashSet;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::support::{
    gateway::{ALL_SCOPES, Answer, TestGateway},
    sink::Sink,
};

/// One value of each kind that JSON has, by the word of a schema.
fn kinds() -> [(&'static str, Value); 6] {
    [
        ("null", Value::Null),
        ("boolean", json!(true)),
        ("number", json!(7)),
        ("string", json!("x")),
        ("array", json!(["x", 1])),
        ("object", json!({})),
    ]
}

struct Document(Value);

/// The schemas that were tried: each once in a body, wherever it is.
type Seen = HashSet<*const Value>;

/// The schemas around a place.
type Within = [*const Value];

/// A changed body, and the expected fault: a pointer and a code, or none.
struct Case {
    body: Value,
    expected: Option<(String, &'static str)>,
}

impl Document {
    fn resolved<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(name) = schema["$ref"].as_str() {
            schema = self.0.pointer(name.trim_start_matches('#')).unwrap();
        }
        schema
    }

    /// Returns the schema itself, or its alternatives.
    fn alternatives<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolved(schema);
        match schema["oneOf"].as_array() {
            Some(several) => several.iter().flat_map(|one| self.alternatives(one)).collect(),
            None => vec![schema],
        }
    }

    fn takes(&self, schema: &Value, kind: &str) -> bool {
        self.alternatives(schema).iter().any(|one| match &one["type"] {
            Value::Null => true,
            Value::Array(kinds) => kinds.iter().any(|it| is_kind(it, kind)),
            it => is_kind(it, kind),
        })
    }

    /// Returns a value that a schema accepts, with all of its members; `None` for a schema within itself.
    fn full(&self, schema: &Value, within: &Within) -> Option<Value> {
        let alternatives = self.alternatives(schema);
        let has = |one: &Value, kind: &str| one["type"] == kind || one["type"][0] == kind || one["type"][1] == kind;
        let by_kind = |kind| alternatives.iter().copied().find(|one| has(one, kind));
        let nested = by_kind("object").or_else(|| by_kind("array"));
        if let Some(one) = nested {
            if within.contains(&std::ptr::from_ref(one)) {
                return None;
            }
            if has(one, "object") {
                return Some(self.full_object(one, within));
            }
            let within = [within, &[std::ptr::from_ref(one)]].concat();
            return Some(Value::Array(self.full(&one["items"], &within).into_iter().collect()));
        }
        let one = alternatives[0];
        Some(match one["type"].as_str().or(one["type"][0].as_str()) {
            Some("boolean") => json!(true),
            Some("integer" | "number") => json!(one["minimum"].as_f64().unwrap_or(1.0).max(1.0) as i64),
            Some("string") if one["format"] == "date-time" => json!("2027-01-31T09:00:00Z"),
            Some("string") => json!(one["example"].as_str().or(one["enum"][0].as_str()).unwrap_or("x")),
            _ => json!(7),
        })
    }

    fn full_object(&self, schema: &Value, within: &Within) -> Value {
        let within = [within, &[std::ptr::from_ref(schema)]].concat();
        let members = schema["properties"].as_object().into_iter().flatten().map(|(name, it)| (name.as_str(), it));
        let others = Some(&schema["additionalProperties"]).filter(|it| it.is_object()).map(|it| ("x", it));
        let full = |(name, member): (&str, &Value)| Some((name.to_owned(), self.full(member, &within)?));
        Value::Object(members.chain(others).filter_map(full).collect())
    }

    /// Every case of the place that a pointer names in a body.
    fn cases(&self, body: &Value, pointer: &str, schema: &Value, seen: &mut Seen, cases: &mut Vec<Case>) {
        let with = |value: Value| {
            let mut changed = body.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            changed
        };
        for (kind, value) in kinds() {
            let takes = self.takes(schema, kind);
            let expected = (!takes).then(|| (pointer.to_owned(), "wrong_type"));
            cases.push(Case { body: with(value), expected });
        }
        // PostgreSQL's texts have no NUL.
        if self.takes(schema, "string") {
            cases.push(Case { body: with(json!("a\u{0}b")), expected: None });
        }
        for one in self.alternatives(schema) {
            if !seen.insert(std::ptr::from_ref(one)) {
                continue;
            }
            if one["properties"].is_object() || one["additionalProperties"].is_object() {
                let full = with(self.full_object(one, &[]));
                self.cases_of_object(&full, pointer, one, seen, cases);
            } else if one["items"].is_object() {
                let full = with(Value::Array(self.full(&one["items"], &[]).into_iter().collect()));
                self.cases(&full, &format!("{pointer}/0"), &one["items"], seen, cases);
            }
        }
    }

    fn cases_of_object(&self, body: &Value, pointer: &str, schema: &Value, seen: &mut Seen, cases: &mut Vec<Case>) {
        let changed = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut changed = body.clone();
            change(changed.pointer_mut(pointer).unwrap().as_object_mut().unwrap());
            changed
        };
        let others = &schema["additionalProperties"];
        assert!(!others.is_null(), "{pointer} does not say whether it takes further members");
        if *others == json!(false) {
            let body = changed(&|object| drop(object.insert("nobody".to_owned(), json!(1))));
            cases.push(Case { body, expected: Some((format!("{pointer}/nobody"), "unknown_field")) });
        }
        let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let body_without = changed(&|object| drop(object.remove(name)));
            let missing = required.contains(&name.as_str()).then(|| (format!("{pointer}/{name}"), "missing"));
            let is_tag = name == "type" && schema["properties"]["type"]["enum"].is_array();
            // A list within itself was already tried at its first position.
            let is_there = body.pointer(pointer).is_some_and(|object| object.get(name).is_some());
            if !is_tag && is_there {
                cases.push(Case { body: body_without, expected: missing });
                self.cases(body, &format!("{pointer}/{name}"), member, seen, cases);
            }
        }
        if others.is_object() {
            self.cases(body, &format!("{pointer}/x"), others, seen, cases);
        }
    }
}

fn is_kind(schema: &Value, kind: &str) -> bool {
    schema == kind || schema == "integer" && kind == "number"
}

#[tokio::test]
async fn the_parser_takes_what_the_document_says_and_nothing_else() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let connection = gateway.webhook(&sink, "/in").await;
    let route = gateway.get("/v1/routes").await["data"][0]["id"].as_str().unwrap().to_owned();
    let rule = json!({"name": "x", "when": {"customer": {"segment": "vip"}}, "then": {"priority": "high"}});
    gateway.post("/v1/rules", &json!({"uid": "any", "rule": rule})).await.expect(201);
    let script = json!({"source": "fn score(candidate) { 1 }"});
    gateway.post("/v1/scripts/gate/versions", &script).await.expect(201);
    let message = gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}})).await;
    let key = gateway.key_with(&format!("{ALL_SCOPES},operator"));
    let document = Document(gateway.get("/openapi.json").await);
    let (mut count, mut wrong) = (0, Vec::new());
    for (path, item) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            // Some of these have to be there before a body is looked at.
            let at = path.replace("/secrets/{name}", "/secrets/signing_key").replace("{name}", "webhook");
            let at = at.replace("{connection}", &connection).replace("{route}", &route);
            let at = at.replace("{rule}", "any").replace("{script}", "gate").replace("{id}", &message);
            let method = method.to_uppercase().parse::<Method>().unwrap();
            let mut cases = Vec::new();
            let full = document.full(schema, &[]).unwrap();
            document.cases(&full, "", schema, &mut Seen::new(), &mut cases);
            for case in cases.into_iter().filter(|case| is_said_of_the_body(path, case)) {
                let answer = gateway.call_as(&key, method.clone(), &at, Some(&case.body)).await;
                if !case.is_answered(&answer) {
                    wrong.push(format!("{method} {path}: {:?} of {}: {}", case.expected, case.body, answer.body));
                }
                count += 1;
            }
        }
    }
    let shown = wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {count}:\n{shown}", wrong.len());
    assert!(count > 1000, "{count}");
}

impl Case {
    fn is_answered(&self, answer: &Answer) -> bool {
        let errors = answer.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let said = |pointer: &str, code: &str| errors.iter().any(|it| it["pointer"] == pointer && it["code"] == code);
        match &self.expected {
            Some((pointer, code)) => answer.status == 422 && said(pointer, code),
            // The document lets it pass: the parser must not stumble over its form.
            None => answer.status.as_u16() < 500 && !said("", "invalid"),
        }
    }
}

/// Messages of a batch have answers of their own.
fn is_said_of_the_body(path: &str, case: &Case) -> bool {
    path != "/v1/messages/batch" || case.expected.as_ref().is_none_or(|(pointer, _)| !pointer.starts_with("/messages/"))
}
