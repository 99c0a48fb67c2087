//! A provider's requirements on messages, if its descriptor has a JSON Schema for each channel.

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::address_keyword::ADDRESS;
use angarium_domain::problem::Problem;

/// A channel's schema, ready for use.
pub(super) struct ContentForm {
    schema: Value,
    validator: Validator,
}

impl ContentForm {
    pub(super) const fn new(schema: Value, validator: Validator) -> Self {
        Self { schema, validator }
    }

    /// Everything that it refuses of a message.
    pub(super) fn problems(&self, message: &Value) -> Vec<Problem> {
        if self.validator.is_valid(message) {
            return Vec::new();
        }
        self.validator.iter_errors(message).map(|error| self.problem(&error)).collect()
    }

    fn problem(&self, error: &ValidationError<'_>) -> Problem {
        let place = error.schema_path().to_string();
        let mut pointer = error.instance_path().to_string();
        if let ValidationErrorKind::Required { property } = error.kind() {
            let name = property.as_str().unwrap_or_default();
            pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        }
        let keyword = error.kind().keyword();
        let detail = self.refusal(&place).unwrap_or_else(|| requirement(keyword, self.schema.pointer(&place)));
        Problem { pointer, code: code(keyword), detail }
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
        "enum" => format!("must be one of {value}"),
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
        let found = ContentForm::new(schema, validator).problems(message);
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
