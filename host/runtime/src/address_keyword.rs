//! The keyword `address` of providers' schemas: `mailbox`, `e164` or `sms_sender`. The syntax of an address is then the
//! gateway's rule, and no pattern of the provider's own.

use jsonschema::{Keyword, ValidationError, paths::Location};
use serde_json::{Map, Value};

use angarium_domain::message::address::{is_e164, is_mailbox, is_sms_sender};

/// Its name in a schema.
pub(super) const ADDRESS: &str = "address";

/// The rule that a text is checked against.
struct Address {
    is_one: fn(&str) -> bool,
    requirement: &'static str,
}

/// Makes the keyword of a schema ready.
///
/// # Errors
/// If its value is no kind of address.
pub(super) fn address<'a>(
    _: &'a Map<String, Value>,
    value: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    match value.as_str() {
        Some("mailbox") => Ok(Box::new(Address { is_one: is_mailbox, requirement: "must be an e-mail address" })),
        Some("e164") => Ok(Box::new(Address { is_one: is_e164, requirement: "must be a number in E.164 form" })),
        Some("sms_sender") => Ok(Box::new(Address {
            is_one: is_sms_sender,
            requirement: "must be a number in E.164 form, a short code, or up to 11 letters and digits",
        })),
        _ => Err(ValidationError::custom("`address` must be `mailbox`, `e164` or `sms_sender`")),
    }
}

impl<'i> Keyword<'i> for Address {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) { Ok(()) } else { Err(ValidationError::custom(self.requirement)) }
    }

    /// Like `pattern`: other keywords check a value that is no text.
    fn is_valid(&self, instance: &'i Value) -> bool {
        instance.as_str().is_none_or(self.is_one)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_held_against_the_gateways_rule() {
        let validator =
            |schema: &Value| jsonschema::draft202012::options().with_keyword(ADDRESS, address).build(schema);
        let number = validator(&json!({"properties": {"to": {"address": "e164"}}})).unwrap();
        for (to, fits) in [(json!("+14155550123"), true), (json!("0701234567"), false), (json!(7), true)] {
            assert_eq!(number.is_valid(&json!({ "to": to })), fits, "{to}");
        }
        let mailbox = validator(&json!({"address": "mailbox"})).unwrap();
        assert!(mailbox.is_valid(&json!("ann@example.org")) && !mailbox.is_valid(&json!("ann")));
        assert!(validator(&json!({"address": "fax"})).is_err());
    }
}
