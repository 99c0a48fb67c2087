//! Checks a provider's descriptor. All faults are found at once, each by its field.

use std::collections::{BTreeMap, HashSet};

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value};

use super::{
    address_keyword::{ADDRESS, address},
    answer::{excerpt, is_currency, is_word},
    provider_schema::ProviderSchema,
    v1::RawDescriptor,
};
use angarium_domain::{
    price,
    provider::{Descriptor, SecretSpec},
};

const MAX_NAME: usize = 64;
const MAX_SUMMARY: usize = 300;
const MAX_ENTRIES: usize = 64;
const MAX_JSON: usize = 64 << 10;
const MAX_BATCH: u32 = 1_000;
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A fault of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {detail}")]
pub struct DescriptorProblem {
    /// Such as `channels[1]`.
    pub field: String,
    pub detail: String,
}

/// A descriptor that was checked, with its schemas ready for use.
pub(super) struct Described {
    pub(super) descriptor: Descriptor,
    pub(super) config: ProviderSchema,
    /// The schemas of secrets, for those with a declared form.
    pub(super) secrets: BTreeMap<String, Validator>,
    /// The schemas of messages, for channels with one.
    pub(super) content: BTreeMap<String, ProviderSchema>,
}

/// Collects faults.
#[derive(Default)]
struct Problems(Vec<DescriptorProblem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.0.push(DescriptorProblem { field: field.into(), detail: detail.into() });
    }

    fn unless(&mut self, right: bool, field: impl Into<String>, detail: impl Into<String>) {
        if !right {
            self.add(field, detail);
        }
    }
}

/// Checks all of a descriptor.
pub(super) fn check(raw: RawDescriptor) -> Result<Described, Vec<DescriptorProblem>> {
    let mut problems = Problems::default();
    identity(&mut problems, &raw);
    channels(&mut problems, &raw.channels);
    secrets(&mut problems, &raw.secrets);
    let schema = json(&mut problems, "config_schema", &raw.config_schema);
    hosts(&mut problems, &raw.hosts, &schema);
    let cost_model = json(&mut problems, "cost_model", &raw.cost_model);
    cost(&mut problems, &cost_model);
    let ext = json(&mut problems, "ext", &raw.ext);
    let secrets = secret_schemas(&mut problems, &ext, &raw.secrets);
    let content = content_schemas(&mut problems, &ext, &raw.channels);
    let schema = Value::Object(schema);
    let config = compile(&mut problems, "config_schema", &schema, "object");
    match config {
        Some(config) if problems.0.is_empty() => {
            let config = ProviderSchema::new(schema.clone(), config);
            Ok(Described { descriptor: descriptor(raw, schema, cost_model, ext), config, secrets, content })
        }
        Some(_) | None => Err(problems.0),
    }
}

fn descriptor(
    raw: RawDescriptor,
    schema: Value,
    cost_model: Map<String, Value>,
    ext: Map<String, Value>,
) -> Descriptor {
    Descriptor {
        name: raw.name,
        version: raw.version,
        summary: raw.summary,
        channels: raw.channels,
        config_schema: schema,
        secrets: raw.secrets,
        hosts: raw.hosts,
        deduplication: raw.deduplication,
        cost_model: Value::Object(cost_model),
        max_batch: raw.max_batch,
        ext: Value::Object(ext),
    }
}

fn identity(problems: &mut Problems, raw: &RawDescriptor) {
    let RawDescriptor { name, version, summary, max_batch, .. } = raw;
    let form = "must be lower-case letters, digits and hyphens, at most 64";
    problems.unless(is_name(name), "name", format!("{form} (got {:?})", excerpt(name)));
    if let Err(error) = semver::Version::parse(version) {
        problems.add("version", format!("must be a semantic version: {error} (got {:?})", excerpt(version)));
    }
    let is_sentence = !summary.trim().is_empty() && summary.len() <= MAX_SUMMARY && !summary.contains(char::is_control);
    problems.unless(is_sentence, "summary", format!("must be one sentence of at most {MAX_SUMMARY} bytes"));
    let is_batch = (1..=MAX_BATCH).contains(max_batch);
    problems.unless(is_batch, "max_batch", format!("must be 1 to {MAX_BATCH} (got {max_batch})"));
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && is_label(text) && !text.contains(|char: char| char.is_ascii_uppercase())
}

/// A label of a host's name: letters, digits and inner hyphens.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn channels(problems: &mut Problems, channels: &[String]) {
    problems.unless(!channels.is_empty(), "channels", "must name at least one channel");
    let names = channels.iter().map(String::as_str);
    words(problems, "channels", "", names);
}

fn secrets(problems: &mut Problems, secrets: &[SecretSpec]) {
    words(problems, "secrets", ".name", secrets.iter().map(|secret| secret.name.as_str()));
    for (index, secret) in secrets.iter().enumerate() {
        let is_sentence = !secret.purpose.trim().is_empty() && secret.purpose.len() <= MAX_SUMMARY;
        let detail = format!("must be one sentence of at most {MAX_SUMMARY} bytes");
        problems.unless(is_sentence, format!("secrets[{index}].purpose"), detail);
    }
}

fn too_many(given: usize) -> String {
    format!("must have at most {MAX_ENTRIES} entries (got {given})")
}

/// Names that are words, each once.
fn words<'a>(problems: &mut Problems, field: &str, member: &str, names: impl ExactSizeIterator<Item = &'a str>) {
    problems.unless(names.len() <= MAX_ENTRIES, field, too_many(names.len()));
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        let at = format!("{field}[{index}]{member}");
        let shown = excerpt(name);
        problems.unless(
            is_word(name),
            &at,
            format!("must be lower-case letters, digits and underscores (got {shown:?})"),
        );
        problems.unless(seen.insert(name), &at, format!("must be listed once (got {shown:?} twice)"));
    }
}

fn json(problems: &mut Problems, field: &str, text: &str) -> Map<String, Value> {
    if text.len() > MAX_JSON {
        problems.add(field, format!("must have at most {MAX_JSON} bytes (got {})", text.len()));
        return Map::new();
    }
    serde_json::from_str(text).unwrap_or_else(|error| {
        problems.add(field, format!("must be a JSON object: {error}"));
        Map::new()
    })
}

/// The schemas of secrets' values, by their names: `ext.secrets`.
fn secret_schemas(
    problems: &mut Problems,
    ext: &Map<String, Value>,
    secrets: &[SecretSpec],
) -> BTreeMap<String, Validator> {
    let Some(schemas) = ext.get("secrets") else { return BTreeMap::new() };
    let Some(schemas) = schemas.as_object() else {
        problems.add("ext.secrets", "must be an object: a JSON Schema under each secret's name");
        return BTreeMap::new();
    };
    let mut compiled = BTreeMap::new();
    for (name, schema) in schemas {
        let at = format!("ext.secrets.{}", excerpt(name));
        problems.unless(secrets.iter().any(|secret| secret.name == *name), &at, "must name a secret of the descriptor");
        compiled.extend(compile(problems, &at, schema, "string").map(|schema| (name.clone(), schema)));
    }
    compiled
}

/// Returns its schemas of messages, by channel: `ext.content`.
fn content_schemas(
    problems: &mut Problems,
    ext: &Map<String, Value>,
    channels: &[String],
) -> BTreeMap<String, ProviderSchema> {
    let Some(schemas) = ext.get("content") else { return BTreeMap::new() };
    let Some(schemas) = schemas.as_object() else {
        problems.add("ext.content", "must be an object: a JSON Schema under each channel's name");
        return BTreeMap::new();
    };
    let mut compiled = BTreeMap::new();
    for (channel, schema) in schemas {
        let at = format!("ext.content.{}", excerpt(channel));
        problems.unless(channels.contains(channel), &at, "must name a channel of the descriptor");
        let validator = compile(problems, &at, schema, "object");
        compiled.extend(validator.map(|validator| (channel.clone(), ProviderSchema::new(schema.clone(), validator))));
    }
    compiled
}

/// Makes a schema ready. Patterns are matched in linear time, and no reference leaves the
/// document: a schema comes from a plugin's publisher.
fn compile(problems: &mut Problems, field: &str, schema: &Value, kind: &str) -> Option<Validator> {
    let draft = schema.get("$schema").and_then(Value::as_str);
    problems.unless(draft.is_none_or(|draft| draft == DRAFT), field, format!("must be of the draft {DRAFT}"));
    problems.unless(schema["type"] == kind, field, format!("must have the type `{kind}`"));
    let options = jsonschema::draft202012::options().with_pattern_options(PatternOptions::regex()).offline();
    let validator = options.with_keyword(ADDRESS, address).build(schema);
    validator.map_err(|error| problems.add(field, format!("must be a JSON Schema: {error}"))).ok()
}

fn hosts(problems: &mut Problems, hosts: &[String], schema: &Map<String, Value>) {
    problems.unless(hosts.len() <= MAX_ENTRIES, "hosts", too_many(hosts.len()));
    for (index, pattern) in hosts.iter().enumerate() {
        let at = format!("hosts[{index}]");
        match pattern.strip_prefix("{config.").and_then(|rest| rest.strip_suffix('}')) {
            Some(field) => {
                let known = schema.get("properties").and_then(|members| members.get(field)).is_some();
                problems.unless(
                    known,
                    at,
                    format!("must name a property of the config's schema (got {:?})", excerpt(field)),
                );
            }
            None => {
                let forms = "must be a name, `*.example.com`, `{config.field}` or `{to}`";
                problems.unless(is_host(pattern), at, format!("{forms} (got {:?})", excerpt(pattern)));
            }
        }
    }
}

/// A wildcard needs two labels behind it, so that no component asks for all of `*.com`.
fn is_host(pattern: &str) -> bool {
    let (name, labels) = match pattern.strip_prefix("*.") {
        Some(rest) => (rest, 2),
        None => (pattern, 1),
    };
    pattern == "{to}" || name.len() <= 253 && name.split('.').count() >= labels && name.split('.').all(is_label)
}

fn cost(problems: &mut Problems, model: &Map<String, Value>) {
    if model.is_empty() {
        return;
    }
    let text = |member: &str| model.get(member).and_then(Value::as_str);
    problems.unless(
        text("currency").is_some_and(is_currency),
        "cost_model.currency",
        "must be a currency's three letters",
    );
    problems.unless(text("per").is_some_and(is_word), "cost_model.per", "must name a unit, such as `segment`");
    let micros = model.get("micros").and_then(Value::as_f64);
    let is_amount = micros.is_some_and(|micros| (0.0..=9.0e15).contains(&micros));
    problems.unless(is_amount, "cost_model.micros", "must be an amount in millionths");
    for (member, detail) in price::problems(model) {
        problems.add(excerpt(&member), detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::provider::Deduplication;

    fn valid() -> RawDescriptor {
        RawDescriptor {
            name: "acme-sms".to_owned(),
            version: "1.2.3-rc.1".to_owned(),
            summary: "SMS by Acme.".to_owned(),
            channels: vec!["sms".to_owned(), "in_app".to_owned()],
            config_schema: r#"{"type":"object","properties":{"url":{"type":"string","pattern":"^https:"}}}"#.to_owned(),
            secrets: vec![SecretSpec {
                name: "token".to_owned(),
                purpose: "The API's token.".to_owned(),
                required: true,
            }],
            hosts: ["api.acme.example", "*.acme.example", "{config.url}", "{to}"].map(str::to_owned).to_vec(),
            deduplication: Deduplication::Key,
            cost_model: r#"{"currency":"USD","per":"segment","micros":7900}"#.to_owned(),
            max_batch: 1,
            ext: "{}".to_owned(),
        }
    }

    fn problems(change: impl FnOnce(&mut RawDescriptor)) -> Vec<String> {
        let mut raw = valid();
        change(&mut raw);
        check(raw).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_valid_descriptor_passes_with_its_schema_ready() {
        let described = check(valid()).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(described.descriptor.name, "acme-sms");
        assert!(described.config.is_valid(&serde_json::json!({"url": "https://x"})));
        assert!(!described.config.is_valid(&serde_json::json!({"url": "ftp://x"})));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let found = problems(|raw| {
            raw.name = "Acme SMS".to_owned();
            raw.version = "one".to_owned();
            raw.channels = vec!["SMS".to_owned()];
            raw.secrets[0].purpose.clear();
            raw.hosts = vec!["*.com".to_owned(), "{config.host}".to_owned(), "http://x".to_owned()];
            raw.cost_model = r#"{"currency":"usd","per":"segment","micros":-1}"#.to_owned();
            raw.max_batch = 0;
            raw.ext = "[]".to_owned();
        });
        let fields: Vec<&str> = found.iter().filter_map(|problem| problem.split('`').nth(1)).collect();
        assert_eq!(
            fields,
            [
                "name",
                "version",
                "max_batch",
                "channels[0]",
                "secrets[0].purpose",
                "hosts[0]",
                "hosts[1]",
                "hosts[2]",
                "cost_model.currency",
                "cost_model.micros",
                "ext"
            ]
        );
    }

    #[test]
    fn a_schema_must_be_one() {
        let schema = |text: &str| {
            problems(|raw| {
                raw.config_schema = text.to_owned();
                raw.hosts.clear();
            })
        };
        assert!(schema("nonsense")[0].contains("must be a JSON object"));
        assert!(schema(r#"{"type":"string"}"#)[0].contains("must have the type `object`"));
        assert!(schema(r#"{"type":"object","properties":7}"#)[0].contains("must be a JSON Schema"));
        assert!(
            schema(r#"{"type":"object","$ref":"https://evil.example/schema"}"#)[0].contains("must be a JSON Schema")
        );
        assert!(
            schema(r#"{"type":"object","$schema":"http://json-schema.org/draft-07/schema#"}"#)[0].contains("draft")
        );
    }

    #[test]
    fn a_secret_may_have_a_form() {
        let described = |ext: &str| {
            let mut raw = valid();
            raw.ext = ext.to_owned();
            check(raw).map(|described| described.secrets)
        };
        let forms = described(r#"{"secrets":{"token":{"type":"string","pattern":"^ak_[a-z]+$"}}}"#).unwrap();
        let fits = |value: &str| forms["token"].is_valid(&serde_json::json!(value));
        assert!(fits("ak_x") && !fits("x"));
        for (ext, field) in [
            (r#"{"secrets":[]}"#, "ext.secrets"),
            (r#"{"secrets":{"pin":{"type":"string"}}}"#, "ext.secrets.pin"),
            (r#"{"secrets":{"token":{"type":"object"}}}"#, "ext.secrets.token"),
            (r#"{"secrets":{"token":{"type":"string","pattern":"("}}}"#, "ext.secrets.token"),
        ] {
            let problems = described(ext).err().unwrap();
            assert_eq!(problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), [field], "{ext}");
        }
    }

    #[test]
    fn what_it_takes_of_messages_is_told_by_channel() {
        let described = |ext: &str| {
            let mut raw = valid();
            raw.ext = ext.to_owned();
            check(raw).map(|described| described.content)
        };
        let forms = described(r#"{"content":{"sms":{"type":"object","required":["to"]}}}"#).unwrap();
        assert_eq!(forms["sms"].problems(&serde_json::json!({})).len(), 1);
        for (ext, field) in [
            (r#"{"content":[]}"#, "ext.content"),
            (r#"{"content":{"email":{"type":"object"}}}"#, "ext.content.email"),
            (r#"{"content":{"sms":{"type":"string"}}}"#, "ext.content.sms"),
            (r#"{"content":{"sms":{"type":"object","$ref":"https://evil.example/schema"}}}"#, "ext.content.sms"),
        ] {
            let problems = described(ext).err().unwrap();
            assert_eq!(problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), [field], "{ext}");
        }
    }

    #[test]
    fn a_name_stands_once() {
        let found = problems(|raw| raw.channels.push("sms".to_owned()));
        assert_eq!(found, ["`channels[2]` must be listed once (got \"sms\" twice)"]);
    }
}
