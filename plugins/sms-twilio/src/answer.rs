//! The meaning of Twilio's answer.

use angarium_provider::{Context, Cost, HttpResponse, Outcome, Reply, code};
use serde::Deserialize;

use crate::errors;

/// Longer messages are cut.
const MAX_MESSAGE: usize = 300;

/// No message costs more, in any currency.
const MAX_PRICE: f64 = 1e6;

/// The fields that are read of a created message.
#[derive(Deserialize)]
struct Created {
    sid: String,
    /// A number in a string; `0` while a service has not chosen the sender yet.
    num_segments: Option<String>,
    /// A negative decimal number in a string, once it is known.
    price: Option<String>,
    price_unit: Option<String>,
    error_code: Option<u32>,
    error_message: Option<String>,
}

/// The fields that are read of a refusal.
#[derive(Deserialize)]
struct Refused {
    code: u32,
    #[serde(default)]
    message: String,
}

/// The outcome.
pub fn classify(ctx: &Context, answer: &Reply) -> Outcome {
    let Reply::Http(response) = answer else { return Outcome::not_over_http() };
    if (200..300).contains(&response.status) { created(response) } else { refused(ctx, answer, response) }
}

/// 201 is Twilio's own answer for a created message, so the message was taken even if the rest of the answer is cut or
/// unreadable. Any other success without a message's sid may be a proxy's page: the message may have been taken.
fn created(response: &HttpResponse) -> Outcome {
    let Some(message) = response.json::<Created>().filter(|message| is_sid(&message.sid)) else {
        if response.status == 201 {
            let mut outcome = Outcome::accepted().code(201);
            outcome.message = "accepted; the answer does not hold the message's sid".into();
            return outcome;
        }
        let said = format!("the answer {} is not a message of Twilio's", response.status);
        return Outcome::unknown(code::UNREADABLE_ANSWER, said).code(response.status);
    };
    if let Some(error) = message.error_code {
        let text = message.error_message.unwrap_or_default();
        return errors::outcome(error, said_by_twilio(error, &text))
            .unwrap_or_else(|| Outcome::rejected_permanent(code::REJECTED, said_by_twilio(error, &text)).code(error));
    }
    let mut outcome = Outcome::accepted().code(response.status).external_id(&message.sid);
    outcome.units = message.num_segments.as_ref().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    outcome.cost = cost(&message);
    outcome
}

/// `None` until Twilio knows the price; a price that makes no sense must not cost the outcome.
fn cost(message: &Created) -> Option<Cost> {
    let price: f64 = message.price.as_ref()?.parse().ok()?;
    let currency = message.price_unit.as_ref()?.to_uppercase();
    let is_currency = currency.len() == 3 && currency.bytes().all(|letter| letter.is_ascii_uppercase());
    (price.abs() < MAX_PRICE && is_currency).then(|| Cost { micros: (price.abs() * 1e6).round(), currency })
}

/// Classifies by Twilio's code if it is known, else by the status. A 504 comes from a gateway in front of a service
/// that may continue: Twilio recognises no repetition, so the request is not repeated blindly.
fn refused(ctx: &Context, answer: &Reply, response: &HttpResponse) -> Outcome {
    let by_status = Outcome::from_http_status(ctx, answer);
    let Some(refusal) = response.json::<Refused>() else {
        return if response.status == 504 {
            Outcome::unknown(code::PROVIDER_ERROR, "a gateway of Twilio's gave up waiting").code(504)
        } else {
            by_status
        };
    };
    let message = said_by_twilio(refusal.code, &refusal.message);
    match errors::outcome(refusal.code, message.clone()) {
        Some(outcome) => outcome.retry_after_ms(by_status.retry_after_ms),
        None => Outcome { message, ..by_status }.code(refusal.code),
    }
}

/// `SM…` or `MM…`, then 32 hexadecimal digits.
fn is_sid(sid: &str) -> bool {
    let digits = sid.strip_prefix("SM").or_else(|| sid.strip_prefix("MM"));
    digits.is_some_and(|digits| {
        !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn said_by_twilio(error: u32, message: &str) -> String {
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    if message.is_empty() { format!("Twilio answered with its error {error}") } else { message }
}
