//! A mail with its envelope, and the server's answer for each recipient. Pure: it sends nothing.

use super::{reply::ServerReply, session::Stop};
use crate::{Call, byte_budget::BytePermit, fault::invalid, mime};
use angarium_domain::transmission::{Blob, Fault, RecipientAnswer, RecipientReply, SmtpSubmission};

/// The most bytes of a line of a mail, without its end (RFC 5321, 4.5.3.1.6).
const MAX_LINE: usize = 998;

/// A mail, ready to be handed over.
pub(super) struct Envelope {
    pub from: String,
    pub recipients: Vec<EnvelopeRecipient>,
    pub data: Vec<u8>,
    /// Whether an address needs SMTPUTF8.
    pub utf8: bool,
    /// For the data's bytes.
    pub permit: Option<BytePermit>,
    /// The server's answer for each recipient in the present transaction.
    answers: Vec<RecipientReply>,
}

pub(super) struct EnvelopeRecipient {
    pub address: String,
    /// Whether it is in the `To` header: without it, the mail is pointless.
    main: bool,
}

impl Envelope {
    pub(super) fn write(mail: &SmtpSubmission, blobs: &[Blob], call: &Call<'_>) -> Result<Self, Fault> {
        let from = if mail.mail_from.is_empty() { String::new() } else { mime::mailbox(&mail.mail_from)? };
        let main = mail.message.to.iter().map(|to| mime::mailbox(&to.value)).collect::<Result<Vec<_>, _>>()?;
        let recipients = mail.rcpt_to.iter().map(|to| {
            let address = mime::mailbox(to)?;
            Ok(EnvelopeRecipient { main: main.contains(&address), address })
        });
        let recipients = recipients.collect::<Result<Vec<_>, Fault>>()?;
        if recipients.is_empty() {
            return Err(invalid("the mail has no recipient"));
        }
        let mut data = mime::write(&mail.message, call.material(blobs))?;
        if let Some(dkim) = &mail.dkim {
            let at_s = (mail.message.date_ms / 1000.0) as i64;
            data = mime::signed(data, dkim, call.secrets.newest(&dkim.key)?, at_s)?;
        }
        if let Some(length) = longest_line(&data).filter(|length| *length > MAX_LINE) {
            return Err(invalid(format!("a line of the mail must have at most {MAX_LINE} bytes (got {length})")));
        }
        let utf8 = !from.is_ascii() || recipients.iter().any(|to| !to.address.is_ascii()) || !data.is_ascii();
        Ok(Self { from, recipients, data, utf8, permit: None, answers: Vec::new() })
    }

    /// Begins a transaction without any answers.
    pub(super) fn forget_answers(&mut self) {
        self.answers.clear();
    }

    /// Records the server's answer for a recipient. The mail is pointless without that of the `To` header.
    pub(super) fn note(&mut self, recipient: usize, reply: ServerReply) -> Result<RecipientAnswer, Stop> {
        let answer = recipient_answer(&reply);
        let recipient = &self.recipients[recipient];
        self.answers.push(recipient.reply(answer, &reply));
        let is_over = reply.code == 421 || recipient.main && answer != RecipientAnswer::Accepted;
        if is_over { Err(Stop::Refused(reply)) } else { Ok(answer) }
    }

    /// The data leaves memory, and its permit is given back.
    pub(super) fn forget_data(&mut self) {
        (self.data, self.permit) = (Vec::new(), None);
    }

    /// Returns the outcome for each recipient of a mail that the server took with this reply.
    pub(super) fn served(&mut self, last: &ServerReply) -> Vec<RecipientReply> {
        let mut recipients = std::mem::take(&mut self.answers);
        for recipient in recipients.iter_mut().filter(|it| it.answer == RecipientAnswer::Accepted) {
            (recipient.code, recipient.enhanced) = (last.code, last.enhanced.clone());
            recipient.text.clone_from(&last.text);
        }
        recipients
    }

    /// Returns the recipients that were refused individually if the mail went to none. With a `To` among them, the
    /// answer speaks for all.
    pub(super) fn refused(&mut self) -> Vec<RecipientReply> {
        if self.recipients.iter().any(|it| it.main) {
            return Vec::new();
        }
        let mut recipients = std::mem::take(&mut self.answers);
        recipients.retain(|it| it.answer != RecipientAnswer::Accepted);
        for recipient in recipients.iter_mut().filter(|it| it.answer == RecipientAnswer::TooMany) {
            // There was none before it in the transaction.
            recipient.answer =
                if recipient.code / 100 == 4 { RecipientAnswer::Deferred } else { RecipientAnswer::Refused };
        }
        recipients
    }

    /// Returns the recipients without the mail, for now or for good; `None` if it goes to all.
    pub(super) fn left_out(&self) -> Option<String> {
        let left_out: Vec<_> = self
            .answers
            .iter()
            .filter(|it| it.answer != RecipientAnswer::Accepted)
            .map(|it| format!("<{}> {} {}", it.address, it.code, it.text))
            .collect();
        (!left_out.is_empty()).then(|| left_out.join("; "))
    }
}

impl EnvelopeRecipient {
    fn reply(&self, answer: RecipientAnswer, reply: &ServerReply) -> RecipientReply {
        RecipientReply {
            address: self.address.clone(),
            main: self.main,
            answer,
            code: reply.code,
            enhanced: reply.enhanced.clone(),
            text: reply.text.clone(),
        }
    }
}

/// Returns the meaning of a reply to `RCPT TO`. One recipient too many is often refused for good by its code, and is
/// not (RFC 5321, 4.5.3.1.10; RFC 3463, 3.6).
fn recipient_answer(reply: &ServerReply) -> RecipientAnswer {
    const SIGNS: [&str; 3] = ["too many recipients", "per transaction", "recipients limit"];
    let text = reply.text.to_lowercase();
    let by_code = reply.enhanced.as_deref().is_some_and(|code| code.ends_with(".5.3"));
    let by_text = matches!(reply.code, 451 | 452 | 552) && SIGNS.iter().any(|sign| text.contains(sign));
    match reply.code {
        200..=299 => RecipientAnswer::Accepted,
        400..=599 if by_code || by_text => RecipientAnswer::TooMany,
        400..=499 => RecipientAnswer::Deferred,
        _ => RecipientAnswer::Refused,
    }
}

fn longest_line(data: &[u8]) -> Option<usize> {
    let mut from = 0;
    memchr::memmem::find_iter(data, b"\r\n").map(|end| end - std::mem::replace(&mut from, end + 2)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_to_the_byte() {
        assert_eq!(longest_line(b"abc\r\n\r\nabcd\r\n"), Some(4));
        assert_eq!(longest_line(b""), None);
    }
}
