//! SMS and MMS through Twilio's Messages API (2010-04-01).
//!
//! The parameters `max_price` (a decimal number in the account's currency) and `validity_period`
//! (seconds) are Twilio's `MaxPrice` and `ValidityPeriod`; others are left alone, since they may
//! be meant for the provider that the route falls back to.
//!
//! Twilio drops no repeated request, so the gateway commits its intent before it sends.

mod answer;
mod errors;
mod receipt;
mod request;

use angarium_provider::callback::{self, Callback};
use angarium_provider::serde_json::json;
use angarium_provider::{Context, Delivery, Descriptor, Outcome, Provider, Reply, Step, export};

pub use request::Config;

/// An estimate of an outbound segment's price in the United States, in millionths of a dollar and
/// without carrier fees, since answers hardly ever hold a price yet when they come. Real prices
/// differ by country and contract.
const ESTIMATE_MICROS: u32 = 8_300;

/// The provider `sms-twilio`.
pub struct SmsTwilio;

impl Provider for SmsTwilio {
    type Config = Config;

    fn describe() -> Descriptor {
        Descriptor::new("sms-twilio", env!("CARGO_PKG_VERSION"), "Sends SMS and MMS through Twilio.", &["sms", "mms"])
            .config_schema(include_str!("config.schema.json"))
            .content_schema("sms", include_str!("sms.schema.json"))
            .content_schema("mms", include_str!("mms.schema.json"))
            .secret(request::AUTH_TOKEN, "The account's auth token, or the API key's secret.")
            .optional_secret(
                receipt::CALLBACK_KEY,
                "What signs Twilio's callbacks where `auth_token` does not: the account's auth token, beside an API key.",
            )
            .hosts(&["api.twilio.com", "{config.base_url}"])
            .cost_model(json!({"currency": "USD", "per": "segment", "micros": ESTIMATE_MICROS}))
    }

    fn prepare(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<Step, Outcome> {
        request::build(ctx, config, delivery).map(Step::from)
    }

    fn interpret(ctx: &Context, _: &Config, _: &[u8], answer: &Reply) -> Result<Step, Outcome> {
        Ok(answer::classify(ctx, answer).into())
    }

    fn parse_callback(ctx: &callback::Context, _: &Config, request: &callback::Request) -> Result<Callback, String> {
        receipt::read(ctx, request)
    }
}

export!(SmsTwilio, with callbacks);

#[cfg(test)]
mod tests {
    #[test]
    fn golden_vectors() {
        angarium_provider::vectors::check::<super::SmsTwilio>(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"));
    }
}
