//! Fields of a connection's config that are as sensitive as a secret. Pure.

use serde_json::Value;

use super::{
    provider::Descriptor,
    redaction::{HIDDEN, Redactor},
};

/// The property of the config's schema by which only readers of the config itself see the field's texts.
const SENSITIVE: &str = "sensitive";

/// The texts that a dry run does not show: those of fields that the provider's schema marks with `"sensitive": true`.
#[derive(Debug, Default)]
pub struct SensitiveTexts<'a> {
    texts: Vec<&'a str>,
    redactor: Redactor,
}

impl<'a> SensitiveTexts<'a> {
    /// Returns the texts of a connection's config.
    #[must_use]
    pub fn of(descriptor: &Descriptor, config: &'a Value) -> Self {
        let mut texts = Vec::new();
        for (name, field) in descriptor.config_schema["properties"].as_object().into_iter().flatten() {
            if field.get(SENSITIVE).and_then(Value::as_bool) == Some(true) {
                collect(&config[name.as_str()], &mut texts);
            }
        }
        Self { redactor: Redactor::of(texts.iter().map(|text| text.as_bytes())), texts }
    }

    /// Hides them in a text as secrets are, and a text that is one of them however short it is.
    pub fn hide_text(&self, text: &mut String) {
        if self.texts.contains(&text.as_str()) {
            HIDDEN.clone_into(text);
        } else {
            self.redactor.redact(text);
        }
    }

    /// Hides them in all texts of what would be shown.
    pub fn hide(&self, shown: &mut Value) {
        match shown {
            Value::String(text) => self.hide_text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide(item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.hide(member)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(members) => members.values().for_each(|member| collect(member, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
