//! A descriptor, built up from what every provider must say.

use serde_json::{Value, json};

use crate::{Context, Deduplication, Delivery, Descriptor, SecretSpec};

impl Descriptor {
    /// A provider for these channels: one delivery at a time, no hosts, no secrets, no
    /// configuration, repeated sends not recognised.
    pub fn new(name: &str, version: &str, summary: &str, channels: &[&str]) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            summary: summary.into(),
            channels: owned(channels),
            config_schema: r#"{"type":"object","additionalProperties":false}"#.into(),
            secrets: Vec::new(),
            hosts: Vec::new(),
            deduplication: Deduplication::None,
            cost_model: "{}".into(),
            max_batch: 1,
            ext: "{}".into(),
        }
    }

    /// JSON Schema (2020-12) of a connection's `config`.
    #[must_use]
    pub fn config_schema(mut self, schema: impl ToString) -> Self {
        self.config_schema = schema.to_string();
        self
    }

    /// A secret that every connection must have.
    #[must_use]
    pub fn secret(self, name: &str, purpose: &str) -> Self {
        self.with_secret(name, purpose, true)
    }

    /// A secret that a connection may have.
    #[must_use]
    pub fn optional_secret(self, name: &str, purpose: &str) -> Self {
        self.with_secret(name, purpose, false)
    }

    /// The form of a secret's value, as a regular expression without look-around: a value that does
    /// not match is refused when it is saved, with the secret's purpose as the remedy.
    #[must_use]
    pub fn secret_pattern(self, name: &str, pattern: &str) -> Self {
        self.with_ext(|ext| ext["secrets"][name] = json!({ "type": "string", "pattern": pattern }))
    }

    /// Sets the JSON Schema (2020-12, of the type `object`) of messages by this channel. A message that satisfies no
    /// candidate's schema is refused before it is accepted; `refusal` beside a keyword is the error text. A schema that
    /// is no JSON is refused with the component.
    #[must_use]
    pub fn content_schema(self, channel: &str, schema: &str) -> Self {
        let schema = serde_json::from_str(schema).unwrap_or(Value::Null);
        self.with_ext(|ext| ext["content"][channel] = schema)
    }

    fn with_ext(mut self, add: impl FnOnce(&mut Value)) -> Self {
        let mut ext: Value = serde_json::from_str(&self.ext).unwrap_or_default();
        add(&mut ext);
        self.ext = ext.to_string();
        self
    }

    fn with_secret(mut self, name: &str, purpose: &str, required: bool) -> Self {
        self.secrets.push(SecretSpec { name: name.into(), purpose: purpose.into(), required });
        self
    }

    /// The hosts that requests may go to; see the contract's `hosts` for the patterns.
    #[must_use]
    pub fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hosts = owned(hosts);
        self
    }

    /// The other side drops a second hand-off with the same delivery key.
    #[must_use]
    pub fn deduplicates_by_key(mut self) -> Self {
        self.deduplication = Deduplication::Key;
        self
    }

    /// Sets the cost of one delivery if answers do not state it; see the contract's `cost-model`.
    #[must_use]
    pub fn cost_model(mut self, model: impl ToString) -> Self {
        self.cost_model = model.to_string();
        self
    }

    /// The service signs no callbacks: every caller with a connection's callback URL is believed.
    #[must_use]
    pub fn unsigned_callbacks(self) -> Self {
        self.with_ext(|ext| ext["unsigned_callbacks"] = json!(true))
    }

    /// The most deliveries one [`Provider::prepare_batch`](crate::Provider::prepare_batch) takes.
    #[must_use]
    pub fn max_batch(mut self, max: u32) -> Self {
        self.max_batch = max;
        self
    }
}

impl Context {
    /// Whether the connection has the secret of that name.
    #[must_use]
    pub fn has_secret(&self, name: &str) -> bool {
        self.secrets.iter().any(|secret| secret == name)
    }

    /// Returns the URL for the service's callbacks of this connection, if the component reads callbacks and the gateway
    /// can be reached from outside.
    #[must_use]
    pub fn callback_url(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Ext {
            callback_url: Option<String>,
        }
        serde_json::from_str::<Ext>(&self.ext).ok()?.callback_url
    }
}

impl Delivery {
    /// The provider-specific parameter of that name.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|param| param.name == name).map(|param| param.value.as_str())
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}
