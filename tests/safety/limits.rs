//! Every limit of the OpenAPI document, and the cost of a body with a million faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::gateway::{Answer, TestGateway, client};

/// The codes for a value beyond a limit.
const BEYOND: [&str; 6] = ["too_long", "too_short", "too_large", "out_of_range", "wrong_length", "empty"];

/// Makes a whole body out of one member's value.
type Plant = Rc<dyn Fn(Value) -> Value>;

/// A member of a body, or an element of a list in it.
struct Place {
    pointer: String,
    schema: Value,
    /// Whether a list is something else that it may be.
    may_be_list: bool,
    plant: Plant,
}

/// A value for a place; `refused` is the pointer that its refusal names.
struct Case {
    value: Value,
    refused: Option<String>,
}

struct Document(Value);

impl Document {
    async fn of(gateway: &TestGateway) -> Self {
        Self(gateway.get("/openapi.json").await)
    }

    /// Returns a schema with its references resolved.
    fn resolved<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(name) = schema["$ref"].as_str() {
            schema = self.0.pointer(name.trim_start_matches('#')).expect("a schema");
        }
        schema
    }

    /// Returns every operation with its method, its path and its parameters.
    fn operations(&self) -> impl Iterator<Item = (Method, &str, &Value)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        paths.flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .filter(|(method, _)| *method != "parameters")
                .map(move |(method, operation)| (method.to_uppercase().parse().unwrap(), path.as_str(), operation))
        })
    }

    /// The least that is as the schema says.
    fn sample(&self, schema: &Value) -> Value {
        self.sample_within(schema, 6).expect("a schema with an end")
    }

    fn sample_within(&self, schema: &Value, depth: u8) -> Option<Value> {
        let (schema, depth) = (self.resolved(schema), depth.checked_sub(1)?);
        if let Some(first) = alternatives(schema).first() {
            return self.sample_within(first, depth);
        }
        if let Some(word) = schema["enum"].get(0).or(schema.get("const")) {
            return Some(word.clone());
        }
        Some(match kinds(schema).first().copied().unwrap_or_default() {
            "object" => self.object_within(schema, None, depth)?,
            "array" => (0..schema["minItems"].as_u64().unwrap_or(0))
                .map(|_| self.sample_within(&schema["items"], depth))
                .collect::<Option<_>>()?,
            "string" => text(schema),
            "integer" => json!(schema["minimum"].as_f64().unwrap_or(1.0) as i64),
            "number" => json!(schema["minimum"].as_f64().unwrap_or(1.0)),
            "boolean" => json!(true),
            _ => json!({}),
        })
    }

    /// Returns an object with its required members and this one.
    fn object(&self, schema: &Value, member: Option<(&str, Value)>) -> Value {
        self.object_within(schema, member, 6).expect("a schema with an end")
    }

    fn object_within(&self, schema: &Value, member: Option<(&str, Value)>, depth: u8) -> Option<Value> {
        let mut object = json!({});
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            object[name] = self.sample_within(&schema["properties"][name], depth)?;
        }
        if let Some((name, value)) = member {
            object[name] = value;
        } else if schema["minProperties"] == 1 && object == json!({}) {
            let properties = schema["properties"].as_object()?.iter();
            let (name, value) =
                properties.filter_map(|(name, schema)| Some((name, self.sample_within(schema, depth)?))).next()?;
            object[name] = value;
        }
        Some(object)
    }

    /// All places of a body.
    fn places(&self, place: Place, within: &BTreeSet<String>, found: &mut Vec<Place>) {
        let mut within = within.clone();
        if let Some(name) = place.schema["$ref"].as_str()
            && !within.insert(name.to_owned())
        {
            return;
        }
        let schema = self.resolved(&place.schema).clone();
        let alternatives = alternatives(&schema);
        let may_be_list =
            place.may_be_list || alternatives.iter().any(|it| kinds(self.resolved(it)).contains(&"array"));
        for alternative in alternatives {
            self.places(Place { schema: alternative.clone(), may_be_list, ..place.again() }, &within, found);
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let (empty, known, outer) =
                (self.object(&schema, Some((name, Value::Null))), name.clone(), place.plant.clone());
            let plant: Plant = Rc::new(move |value| {
                let mut object = empty.clone();
                object[&known] = value;
                outer(object)
            });
            let pointer = format!("{}/{name}", place.pointer);
            self.places(Place::new(pointer, member.clone(), plant), &within, found);
        }
        if schema["items"].is_object() {
            let (rest, outer) = (self.sample(&schema["items"]), place.plant.clone());
            let least = schema["minItems"].as_u64().unwrap_or(1).max(1);
            let plant: Plant =
                Rc::new(move |value| outer(std::iter::once(value).chain((1..least).map(|_| rest.clone())).collect()));
            let pointer = format!("{}/0", place.pointer);
            self.places(Place::new(pointer, schema["items"].clone(), plant), &within, found);
        }
        found.push(Place { schema, ..place });
    }

    /// Values at the bounds of a place, and beyond each of them.
    fn cases(&self, place: &Place) -> Vec<Case> {
        let (schema, here) = (&place.schema, place.pointer.as_str());
        let taken = |value| Case { value, refused: None };
        let refused = |value, name: &str| Case { value, refused: Some(format!("{here}{name}")) };
        let mut cases = Vec::new();
        let kinds = kinds(schema);
        if !kinds.is_empty() && !kinds.contains(&"array") && !place.may_be_list {
            cases.push(refused(json!(["x", "y"]), ""));
        }
        if kinds.contains(&"string") {
            cases.push(refused(json!("a\0b"), ""));
        }
        let (least, most) = (schema["minLength"].as_u64(), schema["maxLength"].as_u64());
        let letters = |count: u64| json!("ö".repeat(count as usize));
        cases.extend(most.map(|most| refused(letters(most + 1), "")));
        cases.extend(least.filter(|least| *least > 0).map(|least| refused(letters(least - 1), "")));
        if schema["pattern"].is_string() {
            cases.push(refused(json!("\u{1}"), ""));
            cases.push(taken(text(schema)));
        } else {
            cases.extend(most.into_iter().chain(least).map(|count| taken(letters(count))));
        }
        if schema["enum"].is_array() {
            cases.push(refused(json!("no such word"), ""));
        }
        if schema["format"] == "date-time" {
            cases.push(refused(json!("yesterday"), ""));
        }
        let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        let whole = kinds.contains(&"integer");
        let number = |number: f64| if whole { json!(number as i64) } else { json!(number) };
        cases.extend(least.iter().chain(&most).map(|bound| taken(number(*bound))));
        cases.extend(least.map(|least| refused(number(least - 1.0), "")));
        cases.extend(most.map(|most| refused(number(most + 1.0), "")));
        if whole {
            cases.push(refused(json!(0.5), ""));
            cases.push(refused(json!(1e30), ""));
        }
        let (least, most) = (schema["minItems"].as_u64(), schema["maxItems"].as_u64());
        let list = |count: u64| -> Value { (0..count).map(|_| self.sample(&schema["items"])).collect() };
        cases.extend(most.map(|most| taken(list(most))));
        cases.extend(most.map(|most| refused(list(most + 1), "")));
        cases.extend(least.filter(|least| *least > 0).map(|least| refused(list(least - 1), "")));
        if schema["additionalProperties"] == json!(false) {
            let mut more = self.object(schema, None);
            more["no_such_member"] = json!(1);
            cases.push(refused(more, "/no_such_member"));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut fewer = self.object(schema, None);
            fewer.as_object_mut().unwrap().remove(name);
            cases.push(refused(fewer, &format!("/{name}")));
        }
        if schema["minProperties"].is_u64() {
            cases.push(refused(json!({}), ""));
        }
        cases
    }
}

impl Place {
    fn new(pointer: String, schema: Value, plant: Plant) -> Self {
        Self { pointer, schema, may_be_list: false, plant }
    }

    fn again(&self) -> Self {
        Self { pointer: self.pointer.clone(), schema: self.schema.clone(), plant: self.plant.clone(), ..*self }
    }
}

fn kinds(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
        kind => kind.as_str().into_iter().collect(),
    }
}

/// Returns the allowed alternatives of a value besides null.
fn alternatives(schema: &Value) -> Vec<&Value> {
    schema["oneOf"].as_array().into_iter().flatten().filter(|it| it["type"] != "null").collect()
}

fn text(schema: &Value) -> Value {
    if schema["format"] == "date-time" {
        return json!("2027-01-31T09:00:00Z");
    }
    let example = schema.get("example").filter(|it| it.is_string()).cloned();
    example.unwrap_or_else(|| json!("a".repeat(schema["minLength"].as_u64().unwrap_or(1).max(1) as usize)))
}

/// Returns how the answer differs from the case's expectation, in words.
fn judge(answer: &Answer, refused: Option<&str>, here: &str) -> Option<String> {
    let status = answer.status.as_u16();
    let errors: Vec<_> = answer.body["errors"].as_array().into_iter().flatten().collect();
    let named: Vec<_> =
        errors.iter().map(|it| (it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect();
    let holds = match refused {
        Some(pointer) => (400..500).contains(&status) && named.iter().any(|(named, _)| *named == pointer),
        None => status < 500 && !named.iter().any(|(named, code)| *named == here && BEYOND.contains(code)),
    };
    (!holds).then(|| format!("{status} {named:?}"))
}

/// The key for an operation: the tenant's, or an operator's.
struct Keys {
    tenant: String,
    operator: String,
}

impl Keys {
    fn of(gateway: &TestGateway) -> Self {
        Self { tenant: gateway.key.clone(), operator: gateway.key_of("operations", "operator,providers:read") }
    }

    fn key(&self, path: &str) -> &str {
        let for_operators = path.starts_with("/v1/providers") || path.starts_with("/v1/operator");
        if for_operators { &self.operator } else { &self.tenant }
    }
}

#[tokio::test]
async fn a_body_is_held_to_every_bound_of_the_document() {
    let gateway = TestGateway::start().await;
    let (document, keys) = (Document::of(&gateway).await, Keys::of(&gateway));
    let things = things(&gateway).await;
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (method, path, operation) in document.operations() {
        let path = &filled(path, &things);
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let mut places = Vec::new();
        let root = Place::new(String::new(), schema.clone(), Rc::new(|value| value));
        document.places(root, &BTreeSet::new(), &mut places);
        // Each message of a batch has an answer of its own.
        places.retain(|place| !path.ends_with("/batch") || !place.pointer.starts_with("/messages/"));
        for place in &places {
            for case in document.cases(place) {
                let body = (place.plant)(case.value.clone());
                let answer = gateway.call_as(keys.key(path), method.clone(), path, Some(&body)).await;
                count += 1;
                if let Some(what) = judge(&answer, case.refused.as_deref(), &place.pointer) {
                    let value = case.value.to_string().chars().take(100).collect::<String>();
                    wrong.push(format!("{method} {path} {} {value}: {what}", place.pointer));
                }
            }
        }
    }
    println!("{count} bodies");
    assert!(count > 1000, "{count} bodies");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_parameter_is_held_to_every_bound_of_the_document() {
    let gateway = TestGateway::start().await;
    let (document, keys) = (Document::of(&gateway).await, Keys::of(&gateway));
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (method, path, operation) in document.operations() {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, place) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
            if place == "path" || operation["operationId"] == "streamEvents" {
                continue;
            }
            let schema = document.resolved(&parameter["schema"]).clone();
            let here = Place::new(format!("{place}/{name}"), schema, Rc::new(|value| value));
            for case in document.cases(&here) {
                // A text that is no number represents every other kind.
                let text = match &case.value {
                    // No header can hold it.
                    Value::String(text) if place == "header" && text.contains('\0') => continue,
                    Value::String(text) => text.replace('ö', "x"),
                    Value::Array(_) if kinds(&here.schema) == ["string"] => continue,
                    other => other.to_string(),
                };
                let at = filled(path, &BTreeMap::from([("version", "1".to_owned())]));
                let mut url = reqwest::Url::parse(&gateway.url(&at)).unwrap();
                if place == "query" {
                    url.query_pairs_mut().append_pair(name, &text);
                }
                let mut request = client().request(method.clone(), url).bearer_auth(keys.key(path));
                if place == "header" {
                    request = request.header(name, &text);
                }
                let request = if method == Method::GET { request } else { request.json(&json!({})) };
                let response = request.send().await.unwrap();
                let (status, headers) = (response.status(), response.headers().clone());
                let answer = Answer { status, headers, body: response.json().await.unwrap_or_default() };
                count += 1;
                if let Some(what) = judge(&answer, case.refused.as_deref(), &here.pointer) {
                    wrong.push(format!("{method} {path} {name}={text}: {what}"));
                }
            }
        }
    }
    println!("{count} parameters");
    assert!(count > 100, "{count} parameters");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Creates objects whose operations read no body before they know the object, by the names that paths have for them.
async fn things(gateway: &TestGateway) -> BTreeMap<&'static str, String> {
    let connection = gateway.connection("x", "webhook", json!({"url": gateway.url("/")}), json!({})).await;
    let spec = json!({"candidates": [{"connection": "x"}]});
    let route = gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await.expect(201);
    let rule = json!({"name": "x", "when": {"industry": {"is": "gambling"}}, "then": {"priority": "high"}});
    let rule = gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(201);
    let id = |thing: &Value| thing["id"].as_str().unwrap().to_owned();
    // A secret of that connection's provider.
    let name = "signing_key".to_owned();
    BTreeMap::from([("connection", connection), ("name", name), ("route", id(&route)), ("rule", id(&rule))])
}

/// A path with names in it: of these things, and else of nothing.
fn filled(path: &str, things: &BTreeMap<&str, String>) -> String {
    let mut filled = String::new();
    for part in path.split_inclusive('}') {
        match part.split_once('{') {
            Some((before, name)) => {
                filled.extend([before, things.get(name.trim_end_matches('}')).map_or("x", String::as_str)]);
            }
            None => filled.push_str(part),
        }
    }
    filled
}

/// Bodies of eight megabytes in which nothing is right are refused at once, each with a short answer, and meanwhile the
/// node answers others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_a_million_faults_are_refused_at_once() {
    let gateway = TestGateway::start().await;
    let unknown: String = (0..600_000).map(|n| format!("\"x{n}\":1,")).collect();
    let bodies = [
        format!("{{{unknown}\"y\":1}}"),
        format!("{{{}\"to\":1}}", "\"to\":1,".repeat(1_000_000)),
        format!("{{\"channels\":[{}1]}}", "1,".repeat(3_000_000)),
        format!("{{\"channel\":\"email\",\"content\":{{\"cc\":[{}1]}}}}", "1,".repeat(3_000_000)),
        format!("{{\"channel\":\"email\",\"content\":{{\"headers\":{{{unknown}\"y\":1}}}}}}"),
        format!("{{\"{}\":1}}", "x".repeat(7 << 20)),
        format!("{{\"channel\":\"{}\"}}", "x".repeat(7 << 20)),
        format!("{{\"to\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000)),
        format!("{{\"to\":{}1{}}}", "{\"a\":".repeat(500_000), "}".repeat(500_000)),
    ];
    let sent = bodies.into_iter().flat_map(|body| [body.clone(), body]).map(|body| {
        let request = client().post(gateway.url("/v1/messages")).bearer_auth(&gateway.key);
        let request = request.header("content-type", "application/json").body(body).timeout(Duration::from_secs(60));
        async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        }
    });
    let alive = async {
        loop {
            assert_eq!(client().get(gateway.url("/livez")).send().await.unwrap().status(), 200);
        }
    };
    let answers = tokio::select! {
        // A tenant's bodies at a time that the node has room for.
        answers = stream::iter(sent).buffer_unordered(4).collect::<Vec<_>>() => answers,
        () = alive => unreachable!("it goes on as long as it is asked"),
    };
    for (status, text) in answers {
        let beginning: String = text.chars().take(300).collect();
        assert!([400, 422].contains(&status), "{status} {beginning}");
        assert!(text.len() < 32 << 10, "{} bytes: {beginning}", text.len());
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert!(problem["errors"].as_array().is_none_or(|errors| errors.len() <= 20), "{beginning}");
    }
}
