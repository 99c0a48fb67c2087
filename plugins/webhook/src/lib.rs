//! Webhooks as Standard Webhooks (standardwebhooks.com) has them: an HTTP request with an id that
//! stays the same over retries, a timestamp and signatures.
//!
//! The body is the delivery's payload byte for byte. Without a payload it is
//! `{"subject":…,"text":…,"html":…}` with the fields that the delivery has.

mod answer;
mod request;

use angarium_provider::{Context, Delivery, Descriptor, Outcome, Provider, Reply, Step, export};

pub use request::Config;

/// The provider `webhook`.
pub struct Webhook;

impl Provider for Webhook {
    type Config = Config;

    fn describe() -> Descriptor {
        Descriptor::new(
            "webhook",
            env!("CARGO_PKG_VERSION"),
            "Calls an HTTP endpoint, signed as Standard Webhooks says.",
            &["webhook"],
        )
        .config_schema(include_str!("config.schema.json"))
        .content_schema("webhook", include_str!("content.schema.json"))
        .optional_secret(
            request::HMAC_KEY,
            "Signs with HMAC-SHA256 (v1): whsec_ and 24 to 64 random bytes in base64; \
             `echo whsec_$(openssl rand -base64 32)` makes one.",
        )
        .secret_pattern(request::HMAC_KEY, request::HMAC_KEY_FORM)
        .optional_secret(
            request::ED25519_KEY,
            "Signs with Ed25519 (v1a): whsk_ and the 32-byte seed in base64, with or without the public key's 32 bytes.",
        )
        .secret_pattern(request::ED25519_KEY, request::ED25519_KEY_FORM)
        .optional_secret(
            request::AUTHORIZATION,
            "The value of the Authorization header, such as `Bearer …`; it goes to the scheme, host and port of `url` alone.",
        )
        .hosts(&["{config.url}", "{to}"])
        .deduplicates_by_key()
    }

    fn prepare(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<Step, Outcome> {
        request::build(ctx, config, delivery).map(Step::from)
    }

    fn interpret(ctx: &Context, _: &Config, _: &[u8], answer: &Reply) -> Result<Step, Outcome> {
        Ok(answer::classify(ctx, answer).into())
    }
}

export!(Webhook);

#[cfg(test)]
mod tests {
    #[test]
    fn golden_vectors() {
        angarium_provider::vectors::check::<super::Webhook>(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"));
    }
}
