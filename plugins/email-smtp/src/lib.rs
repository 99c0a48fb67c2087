//! E-mail through any SMTP server.
//!
//! The gateway writes the MIME form, inserts the attachments and signs with DKIM; this provider maps the delivery's
//! fields. It must refuse everything that could inject a header or an address.
//!
//! The parameter `list_unsubscribe` takes an `https:` URL, a `mailto:` URL or both, separated by
//! a space, and makes `List-Unsubscribe`, with one-click (RFC 8058) where there is an `https:` URL.
//!
//! The parameter `return_path` takes the address for failure reports of this mail, or `<>` for none: an automatic
//! answer or a notice must not be answered (RFC 5321, 4.5.5).

mod addresses;
mod answer;
mod config;
mod headers;
mod submission;

use angarium_provider::{Context, Delivery, Descriptor, Outcome, Provider, Reply, Step, code, export};

pub use config::Config;

/// The provider `email-smtp`.
pub struct EmailSmtp;

impl Provider for EmailSmtp {
    type Config = Config;

    fn describe() -> Descriptor {
        Descriptor::new("email-smtp", env!("CARGO_PKG_VERSION"), "Submits mail to an SMTP server.", &["email"])
            .config_schema(include_str!("config.schema.json"))
            .content_schema("email", include_str!("content.schema.json"))
            .optional_secret(config::PASSWORD, "The password of `username` at the server.")
            .optional_secret(config::DKIM_KEY, "PEM (PKCS#8 or PKCS#1) of the RSA or Ed25519 key that signs mail.")
            .hosts(&["{config.host}"])
    }

    /// The state is the Message-ID, which becomes the external id.
    fn prepare(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<Step, Outcome> {
        let submission = submission::build(ctx, config, delivery)?;
        let message_id = submission.message.message_id.clone();
        Ok(Step::send(submission, message_id))
    }

    fn interpret(_: &Context, _: &Config, state: &[u8], answer: &Reply) -> Result<Step, Outcome> {
        let outcome = match answer {
            Reply::Smtp(reply) => answer::classify(reply, &String::from_utf8_lossy(state)),
            Reply::Http(_) => Outcome::unknown(code::UNREADABLE_ANSWER, "the answer is not of SMTP"),
        };
        Ok(outcome.into())
    }
}

export!(EmailSmtp);

#[cfg(test)]
mod tests {
    #[test]
    fn golden_vectors() {
        angarium_provider::vectors::check::<super::EmailSmtp>(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"));
    }
}
