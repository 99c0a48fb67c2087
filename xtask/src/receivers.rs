//! Stand-ins for the other side: an SMTP server, a webhook endpoint, an SMS provider. Loopback only.

mod mail;
mod sms;
mod webhook;

pub use mail::{Mail, MailServer};
pub use sms::SmsProvider;
pub use webhook::WebhookEndpoint;
