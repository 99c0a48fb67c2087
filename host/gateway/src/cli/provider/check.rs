//! `angarium provider check`: a gateway's checks of a component, without a gateway and without a database.
//!
//! Nothing is sent: the component describes requests, and they are shown.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use super::super::{
    CliError,
    connection::raw_json,
    output::{Column, Output},
};
use crate::clock;
use angarium_domain::{
    callback::{CallbackContext, CallbackRequest},
    provider::{CallContext, Item, Step},
    transmission::Mailbox,
};
use angarium_runtime::{CallError, CallLimits, Called, Component, Runtime, RuntimeSettings};
use angarium_transport::describe;

/// Check a component without a gateway.
#[derive(Debug, Args)]
pub struct Check {
    /// The `.wasm` file.
    component: PathBuf,
    /// A connection's configuration as JSON: it is checked against the component's schema, and requests are made with
    /// it.
    #[arg(long, value_parser = raw_json)]
    config: Option<Box<serde_json::value::RawValue>>,
    /// The recipient of the sample message.
    #[arg(long)]
    to: Option<String>,
    /// The text of the sample message.
    #[arg(long, default_value = "Hello from Angarium")]
    text: String,
}

const COLUMNS: [Column<'_>; 14] = [
    ("name", "/name"),
    ("version", "/version"),
    ("summary", "/summary"),
    ("digest", "/digest"),
    ("bytes", "/bytes"),
    ("compiled in ms", "/compiled_ms"),
    ("channels", "/channels"),
    ("declared hosts", "/declared_hosts"),
    ("secrets", "/shown_secrets"),
    ("recognises repetitions", "/deduplicates"),
    ("imports", "/imports"),
    ("reads callbacks", "/reads_callbacks"),
    ("configuration", "/config"),
    ("problems", "/problems"),
];

const CALLS: [Column<'_>; 6] = [
    ("call", "/call"),
    ("channel", "/channel"),
    ("result", "/result"),
    ("detail", "/detail"),
    ("cpu ms", "/cpu_ms"),
    ("memory", "/memory_bytes"),
];

impl Check {
    pub fn run(self, output: &Output) -> Result<(), CliError> {
        let file = self.component.display();
        let bytes = std::fs::read(&self.component).map_err(|error| CliError::said(format!("{file}: {error}")))?;
        let limits = CallLimits { live_instances: 1, ..CallLimits::default() };
        let runtime = Runtime::new(RuntimeSettings { limits, ..RuntimeSettings::default() });
        let runtime = runtime.map_err(|error| CliError::said(error.to_string()))?;
        let began = Instant::now();
        let component = runtime.admit(&bytes).map_err(|error| CliError::said(format!("{file} is refused: {error}")))?;
        let compiled = began.elapsed();
        let mut report = described(&component, bytes.len());
        report["compiled_ms"] = json!(compiled.as_millis());
        let problems = self.try_out(&component, &mut report);
        report["problems"] = json!(problems);
        output.one(&report, &COLUMNS);
        if !output.json {
            output.rows(&report["calls"], &CALLS);
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(CliError::said(format!("{file}: {}", problems.join("; ")))),
        }
    }

    /// Makes all possible calls; returns the faults.
    fn try_out(&self, component: &Component, report: &mut Value) -> Vec<String> {
        let (config, refused) = self.config(component);
        let mut problems = Vec::new();
        report["config"] = match (&self.config, refused.as_slice()) {
            (_, []) => json!("valid"),
            (Some(_), refused) => {
                problems.push(format!("the configuration is refused: {}", refused.join("; ")));
                json!("refused")
            }
            (None, refused) => json!(format!("none was given (`--config`), and it needs one: {}", refused.join("; "))),
        };
        let mut calls = Vec::new();
        if refused.is_empty() {
            for channel in &component.descriptor().channels {
                let called = component.prepare(&context(component), &config, &[self.item(channel)]);
                calls.push(prepared(channel, called, &mut problems));
            }
        }
        if component.reads_callbacks() {
            calls.push(read(component, &config, &mut problems));
        }
        report["calls"] = Value::Array(calls);
        problems
    }

    /// Returns the configuration, and its faults by the component's schema.
    fn config(&self, component: &Component) -> (String, Vec<String>) {
        let text = self.config.as_ref().map_or("{}", |config| config.get()).to_owned();
        let value = serde_json::from_str(&text).unwrap_or_default();
        let problems = component.validate_config(&value);
        (text, problems.into_iter().map(|it| format!("{} {}", it.pointer, it.detail).trim().to_owned()).collect())
    }

    fn item(&self, channel: &str) -> Item {
        let to = self.to.as_deref().or_else(|| sample_recipient(channel));
        Item {
            id: "dlv_00000000000000000000000000000001".to_owned(),
            key: "00000000000000000000000000000001".to_owned(),
            channel: channel.to_owned(),
            to: to.map(|to| Mailbox { value: to.to_owned(), name: None }).into_iter().collect(),
            subject: Some("Hello".to_owned()),
            text: Some(self.text.clone()),
            ..Item::default()
        }
    }
}

fn sample_recipient(channel: &str) -> Option<&'static str> {
    match channel {
        "email" => Some("ann@example.org"),
        "sms" | "voice" | "whatsapp" => Some("+12025550123"),
        _ => None,
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn described(component: &Component, bytes: usize) -> Value {
    let descriptor = component.descriptor();
    let secret = |it: &angarium_domain::provider::SecretSpec| {
        format!("{}{}", it.name, if it.required { " (required)" } else { "" })
    };
    json!({
        "name": descriptor.name, "version": descriptor.version, "summary": descriptor.summary,
        "digest": component.digest(), "bytes": bytes, "channels": descriptor.channels,
        "declared_hosts": descriptor.hosts, "config_schema": descriptor.config_schema,
        "secrets": descriptor.secrets,
        "shown_secrets": descriptor.secrets.iter().map(secret).collect::<Vec<_>>(),
        "deduplicates": descriptor.deduplication != angarium_domain::provider::Deduplication::None,
        "imports": component.imports(), "reads_callbacks": component.reads_callbacks(),
    })
}

/// Returns the context of a connection that has every secret.
fn context(component: &Component) -> CallContext {
    CallContext {
        now_ms: clock::now().as_millisecond() as f64,
        attempt: 1,
        seed: [0; 32],
        secrets: component.descriptor().secrets.iter().map(|it| it.name.clone()).collect(),
        callback_url: component
            .reads_callbacks()
            .then(|| "https://angarium.example.org/v1/callbacks/sample".to_owned()),
        redactor: Arc::default(),
    }
}

fn prepared(channel: &str, called: Called<Step>, problems: &mut Vec<String>) -> Value {
    let usage = called.usage;
    let (result, detail) = match called.result {
        Ok(Step::Send { transmission, .. }) => match describe(&transmission, &[]) {
            Ok(request) => ("sends", request),
            Err(fault) => broken(channel, fault.detail, problems),
        },
        Ok(Step::Wait { ms, .. }) => ("waits", json!(format!("{ms} ms"))),
        Ok(Step::Done(judgements)) => ("judges", json!(judgements.first().map(|it| it.message.clone()))),
        Err(CallError::Judged(judgement)) => {
            ("refuses the sample", json!(format!("{}: {}", judgement.unified_code, judgement.message)))
        }
        Err(CallError::Broken(fault)) => broken(channel, fault.to_string(), problems),
    };
    json!({"call": "prepare", "channel": channel, "result": result, "detail": detail,
        "cpu_ms": milliseconds(usage.cpu), "memory_bytes": usage.peak_memory})
}

fn broken(what: &str, detail: String, problems: &mut Vec<String>) -> (&'static str, Value) {
    problems.push(format!("{what}: {detail}"));
    ("fails", json!(detail))
}

/// A request that is none of the service's: the component has to say so, and not to fail.
fn read(component: &Component, config: &str, problems: &mut Vec<String>) -> Value {
    let context = CallbackContext {
        now_ms: clock::now().as_millisecond() as f64,
        secrets: component.descriptor().secrets.iter().map(|it| it.name.clone()).collect(),
        redactor: Arc::default(),
    };
    let request = CallbackRequest {
        method: "POST".to_owned(),
        url: "https://angarium.example.org/v1/callbacks/sample".to_owned(),
        headers: Vec::new(),
        body: Vec::new().into(),
    };
    let called = component.parse_callback(&context, config, &request);
    let usage = called.usage;
    let (result, detail) = match called.result {
        Ok(Ok(_)) => ("reads the empty request", Value::Null),
        Ok(Err(refusal)) => ("refuses the empty request", json!(refusal)),
        Err(CallError::Judged(judgement)) => broken("callbacks", judgement.message, problems),
        Err(CallError::Broken(fault)) => broken("callbacks", fault.to_string(), problems),
    };
    json!({"call": "parse-callback", "channel": null, "result": result, "detail": detail,
        "cpu_ms": milliseconds(usage.cpu), "memory_bytes": usage.peak_memory})
}
