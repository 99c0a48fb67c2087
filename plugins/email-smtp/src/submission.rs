//! The submission that is handed to the server.

use std::fmt::Write as _;

use angarium_provider::{
    Address, Context, Delivery, Mail, Outcome, SmtpSubmission,
    address::{are_same, domain_of},
    code,
};

use crate::addresses::{check, check_all, check_no_control};
use crate::{Config, headers};

/// The null reverse-path (RFC 5321, 4.5.5).
const NOBODY: &str = "<>";

/// The gateway takes no longer one.
const MAX_MESSAGE_ID: usize = 255;

/// The submission for a delivery.
pub fn build(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<SmtpSubmission, Outcome> {
    let sender = sender(config, delivery)?;
    let return_path = return_path(config, delivery, &sender)?;
    let rcpt_to = recipients(delivery)?;
    let (user, password) = config.credentials(ctx)?.unzip();
    Ok(SmtpSubmission {
        host: config.host.clone(),
        port: config.port(),
        tls: config.tls,
        user,
        password,
        client_name: config.client_name.clone(),
        mail_from: return_path,
        rcpt_to,
        message: mail(ctx, config, delivery, sender)?,
        dkim: config.dkim(ctx)?,
        timeouts: config.timeouts,
    })
}

/// The message's sender, else the connection's; the connection's name serves its own address.
fn sender(config: &Config, delivery: &Delivery) -> Result<Address, Outcome> {
    let own = config.from.as_ref().map(|value| Address { value: value.clone(), name: config.from_name.clone() });
    let sender = match (&delivery.sender, own) {
        (Some(named), Some(own)) if named.name.is_none() && are_same(&named.value, &own.value) => own,
        (Some(named), _) => named.clone(),
        (None, Some(own)) => own,
        (None, None) => {
            let message = "`from` must be given: neither the message nor the connection names a sender";
            return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, message));
        }
    };
    check(&sender, "from")?;
    Ok(sender)
}

/// The address for failure reports: the message's, else the connection's, else the sender. `<>` is no address:
/// automatic answers and notices must not be answered (RFC 5321, 4.5.5; RFC 3834, 3).
fn return_path(config: &Config, delivery: &Delivery, sender: &Address) -> Result<String, Outcome> {
    let path = match (delivery.param("return_path"), config.return_path.as_deref()) {
        (Some(NOBODY), _) | (None, Some(NOBODY)) => return Ok(String::new()),
        (Some(path), _) => (path, "params.return_path"),
        (None, Some(path)) => (path, "return_path"),
        (None, None) => return Ok(sender.value.clone()),
    };
    check(&Address { value: path.0.to_owned(), name: None }, path.1)?;
    Ok(path.0.to_owned())
}

/// Everyone in the envelope, each once; those in `bcc` appear nowhere else.
fn recipients(delivery: &Delivery) -> Result<Vec<String>, Outcome> {
    check_all(&delivery.to, "to")?;
    check_all(&delivery.cc, "cc")?;
    check_all(&delivery.bcc, "bcc")?;
    let mut envelope: Vec<String> = Vec::new();
    for address in delivery.to.iter().chain(&delivery.cc).chain(&delivery.bcc) {
        if !envelope.iter().any(|it| are_same(it, &address.value)) {
            envelope.push(address.value.clone());
        }
    }
    if envelope.is_empty() {
        return Err(Outcome::rejected_permanent(code::INVALID_RECIPIENT, "`to` must be given"));
    }
    Ok(envelope)
}

fn mail(ctx: &Context, config: &Config, delivery: &Delivery, sender: Address) -> Result<Mail, Outcome> {
    if delivery.text.is_none() && delivery.html.is_none() && delivery.blobs.is_empty() {
        return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, "a mail needs `text`, `html` or an attachment"));
    }
    let subject = delivery.subject.clone().unwrap_or_default();
    check_no_control(&subject, "subject")?;
    check_all(&delivery.reply_to, "reply_to")?;
    for blob in &delivery.blobs {
        check_no_control(&blob.name, "attachments.name")?;
        check_no_control(&blob.media_type, "attachments.media_type")?;
        check_no_control(blob.content_id.as_deref().unwrap_or_default(), "attachments.content_id")?;
    }
    Ok(Mail {
        message_id: message_id(config, delivery, &sender)?,
        sender,
        reply_to: delivery.reply_to.clone(),
        to: delivery.to.clone(),
        cc: delivery.cc.clone(),
        subject,
        date_ms: ctx.now_ms,
        text: delivery.text.clone(),
        html: delivery.html.clone(),
        headers: headers::build(delivery)?,
        blobs: delivery.blobs.iter().map(|blob| blob.id).collect(),
    })
}

/// The same for every try of this delivery, so that the receiver recognises a repetition.
fn message_id(config: &Config, delivery: &Delivery, sender: &Address) -> Result<String, Outcome> {
    let right = config.message_id_domain.as_deref().unwrap_or_else(|| domain_of(&sender.value));
    let id = format!("{}@{}", atoms(&delivery.key), atoms(right));
    if id.len() > MAX_MESSAGE_ID {
        let message = "`from` must have a shorter domain for a Message-ID, or set `message_id_domain`";
        return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, message));
    }
    Ok(id)
}

/// Returns a text as a side of a Message-ID (RFC 5322, 3.6.4): characters outside an atom, or outside ASCII, become `=`
/// and two hexadecimal digits, so that different texts stay different.
fn atoms(text: &str) -> String {
    let mut atoms = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-.".contains(&byte) {
            atoms.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(atoms, "={byte:02X}");
        }
    }
    atoms
}
