//! A connection's configuration, and its settings of the session.

use angarium_provider::{Context, Dkim, Outcome, SmtpTimeouts, SmtpTls};
use serde::Deserialize;

/// Name of the secret.
pub const PASSWORD: &str = "password";
/// Name of the secret.
pub const DKIM_KEY: &str = "dkim_key";

/// A connection's configuration; `config.schema.json` explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub host: String,
    port: Option<u16>,
    #[serde(default = "starttls")]
    pub tls: SmtpTls,
    username: Option<String>,
    pub from: Option<String>,
    pub from_name: Option<String>,
    pub return_path: Option<String>,
    #[serde(default)]
    pub client_name: String,
    dkim_domain: Option<String>,
    dkim_selector: Option<String>,
    pub message_id_domain: Option<String>,
    pub timeouts: Option<SmtpTimeouts>,
}

impl Config {
    /// The port given, or the usual one for the kind of TLS (RFC 8314, RFC 6409).
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            SmtpTls::Implicit => 465,
            SmtpTls::Starttls => 587,
            SmtpTls::None | SmtpTls::Opportunistic => 25,
        })
    }

    /// The user and the name of the password's secret.
    pub fn credentials(&self, ctx: &Context) -> Result<Option<(String, String)>, Outcome> {
        let Some(user) = &self.username else { return Ok(None) };
        if self.tls == SmtpTls::None {
            return Err(invalid_config(
                "`username` is only allowed with TLS: with `tls` none the password would travel in the clear",
            ));
        }
        if !ctx.has_secret(PASSWORD) {
            return Err(Outcome::auth_failed("the connection has a `username` but no secret `password`"));
        }
        Ok(Some((user.clone(), PASSWORD.into())))
    }

    /// How to sign, when the connection has all that it takes; half of it is a mistake that would
    /// otherwise send unsigned mail unnoticed.
    pub fn dkim(&self, ctx: &Context) -> Result<Option<Dkim>, Outcome> {
        match (&self.dkim_domain, &self.dkim_selector, ctx.has_secret(DKIM_KEY)) {
            (Some(domain), Some(selector), true) => {
                Ok(Some(Dkim { domain: domain.clone(), selector: selector.clone(), key: DKIM_KEY.into() }))
            }
            (None, None, false) => Ok(None),
            _ => Err(invalid_config("DKIM needs `dkim_domain`, `dkim_selector` and the secret `dkim_key` together")),
        }
    }
}

fn invalid_config(message: &str) -> Outcome {
    Outcome::rejected_permanent("invalid_config", message)
}

fn starttls() -> SmtpTls {
    SmtpTls::Starttls
}
