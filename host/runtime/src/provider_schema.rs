//! A provider's JSON Schemas: of a connection's config, and of messages by channel. It decides nothing else.

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::address_keyword::ADDRESS;
use angarium_domain::problem::ValueProblem;

/// A schema of a provider's descriptor, ready for use.
pub(super) struct ProviderSchema {
    schema: Value,
    validator: Validator,
}

impl ProviderSchema {
    pub(super) const fn new(schema: Value, validator: Validator) -> Self {
        Self { schema, validator }
    }

    pub(super) fn is_valid(&self, value: &Value) -> bool {
        self.validator.is_valid(value)
    }

    /// Returns all faults of a value. No detail repeats the value.
    pub(super) fn problems(&self, value: &Value) -> Vec<ValueProblem> {
        if self.is_valid(value) {
            return Vec::new();
        }
        self.validator.iter_errors(value).map(|error| self.problem(&error)).collect()
    }

    fn problem(&self, error: &ValidationError<'_>) -> ValueProblem {
        let place = error.schema_path().to_string();
        let mut pointer = error.instance_path().to_string();
        if let Some(name) = named(error.kind()) {
            pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        }
        let keyword = error.kind().keyword();
        let detail = self.refusal(&place).unwrap_or_else(|| requirement(keyword, self.schema.pointer(&place)));
        ValueProblem { pointer, code: code(keyword), detail }
    }

    /// Returns the provider's own words: `refusal` of the schema whose keyword failed, or of one around it.
    fn refusal(&self, place: &str) -> Option<String> {
        let mut around = place;
        while let Some((outer, _)) = around.rsplit_once('/') {
            let words = self.schema.pointer(outer).and_then(|schema| schema["refusal"].as_str());
            if words.is_some() {
                return words.map(str::to_owned);
            }
            around = outer;
        }
        None
    }
}

/// Returns the member that a fault of an object names: the missing one, or the first unexpected one.
fn named(kind: &ValidationErrorKind) -> Option<&str> {
    if let ValidationErrorKind::Required { property } = kind {
        return property.as_str();
    }
    if let ValidationErrorKind::AdditionalProperties { unexpected } = kind {
        return unexpected.first().map(String::as_str);
    }
    None
}

fn code(keyword: &str) -> &'static str {
    match keyword {
        "required" | "anyOf" => "missing",
        "type" => "wrong_type",
        "pattern" | "format" | ADDRESS => "wrong_format",
        "minLength" | "minItems" | "minProperties" => "too_short",
        "maxLength" | "maxItems" | "maxProperties" => "too_long",
        "enum" | "const" => "not_a_choice",
        "falseSchema" | "additionalProperties" => "not_allowed",
        _ => "invalid",
    }
}

/// Returns the requirement of a keyword with this value, in words.
fn requirement(keyword: &str, value: Option<&Value>) -> String {
    let value = value.map(Value::to_string).unwrap_or_default();
    match keyword {
        "required" => "must be given: the provider needs it".to_owned(),
        "type" => format!("must have the type {value}"),
        "pattern" => format!("must match {value}"),
        "minLength" => format!("must have at least {value} characters"),
        "maxLength" => format!("must have at most {value} characters"),
        "minItems" => format!("must have at least {value} elements"),
        "maxItems" => format!("must have at most {value} elements"),
        "minimum" => format!("must be at least {value}"),
        "maximum" => format!("must be at most {value}"),
        "enum" => format!("must be one of {value}"),
        "additionalProperties" => "does not exist".to_owned(),
        "falseSchema" => "is not allowed by the provider".to_owned(),
        _ => format!("must be as the provider's schema says (`{keyword}`)"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(schema: Value, message: &Value) -> Vec<(String, &'static str, String)> {
        let options = jsonschema::draft202012::options().with_pattern_options(jsonschema::PatternOptions::regex());
        let validator = options.build(&schema).unwrap();
        let found = ProviderSchema::new(schema, validator).problems(message);
        let mut told: Vec<_> = found.into_iter().map(|it| (it.pointer, it.code, it.detail)).collect();
        told.sort();
        told
    }

    #[test]
    fn every_field_that_is_refused_is_named_in_the_providers_words() {
        let schema = json!({"type": "object", "required": ["to"], "properties": {
            "to": {"type": "string", "pattern": "^\\+", "refusal": "must be a number"},
            "content": {"type": "object",
                "properties": {
                    "text": {"maxLength": 3},
                    "headers": {"refusal": "is not allowed: the gateway writes it", "patternProperties": {"(?i)^to$": false}},
                },
                "allOf": [{"anyOf": [{"required": ["text"]}, {"required": ["html"]}], "refusal": "must have a text"}]},
        }});
        let told = |pointer: &str, code, detail: &str| (pointer.to_owned(), code, detail.to_owned());
        assert_eq!(
            problems(schema.clone(), &json!({"to": "1", "content": {"headers": {"To": "x", "X": "y"}}})),
            [
                told("/content", "missing", "must have a text"),
                told("/content/headers/To", "not_allowed", "is not allowed: the gateway writes it"),
                told("/to", "wrong_format", "must be a number"),
            ]
        );
        assert_eq!(
            problems(schema.clone(), &json!({"content": {"text": "long"}})),
            [
                told("/content/text", "too_long", "must have at most 3 characters"),
                told("/to", "missing", "must be given: the provider needs it"),
            ]
        );
        assert_eq!(problems(schema, &json!({"to": "+1", "content": {"html": ""}})), []);
    }
}
