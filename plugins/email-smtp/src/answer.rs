//! The meaning of a server's reply, by its code (RFC 5321, 4.2) and its enhanced code (RFC 3463).

use angarium_provider::{Disposition, Outcome, SmtpReply, code};

/// Longer texts are cut; servers write essays.
const MAX_MESSAGE: usize = 300;

/// Returns the outcome; `message_id` identifies the delivery once it was taken.
pub fn classify(reply: &SmtpReply, message_id: &str) -> Outcome {
    let (disposition, unified) = judge(reply);
    let outcome = Outcome::new(disposition, unified, message(reply)).code(own_code(reply));
    if disposition == Disposition::Accepted { outcome.external_id(message_id) } else { outcome }
}

fn judge(reply: &SmtpReply) -> (Disposition, &'static str) {
    match reply.code {
        200..=299 => (Disposition::Accepted, code::OK),
        _ if refuses_credentials(reply) => (Disposition::AuthFailed, code::UNAUTHORIZED),
        400..=499 if is_rate_limit(reply) => (Disposition::Throttled, code::RATE_LIMITED),
        400..=499 => (Disposition::RejectedTransient, transient_cause(reply)),
        500..=599 => (Disposition::RejectedPermanent, permanent_cause(reply)),
        _ => (Disposition::Unknown, code::UNREADABLE_ANSWER),
    }
}

/// RFC 4954, section 6: 432, 534, 535, 538, and 530 for a session without; 525 is a disabled
/// account. 454 is a passing fault of the server's.
fn refuses_credentials(reply: &SmtpReply) -> bool {
    matches!(reply.code, 432 | 525 | 530 | 534 | 535 | 538) || matches!(enhanced(reply), Some((5, 7, 8 | 9 | 11 | 13)))
}

/// Decides by policy (x.7.x), or by the text if the server gives no enhanced code. Too many recipients (4.5.3) is not a
/// rate.
fn is_rate_limit(reply: &SmtpReply) -> bool {
    const SIGNS: [&str; 6] = ["rate", "too many", "too fast", "too much mail", "throttl", "quota exceeded"];
    let may_be = match enhanced(reply) {
        Some((_, 7, 28)) => return true,
        Some((_, subject, _)) => subject == 7 || (subject == 3 && reply.code == 421),
        None => matches!(reply.code, 421 | 450 | 451),
    };
    let text = reply.text.to_lowercase();
    may_be && SIGNS.iter().any(|sign| text.contains(sign))
}

fn transient_cause(reply: &SmtpReply) -> &'static str {
    match enhanced(reply) {
        Some((_, 2, 2)) => code::QUOTA_EXCEEDED,
        Some((_, 7, _)) => code::FORBIDDEN,
        _ => code::PROVIDER_ERROR,
    }
}

fn permanent_cause(reply: &SmtpReply) -> &'static str {
    match (reply.code, enhanced(reply)) {
        (_, Some((_, 1, 7 | 8))) => code::FORBIDDEN,
        (_, Some((_, 1, _) | (_, 2, 0 | 1))) => code::INVALID_RECIPIENT,
        (_, Some((_, 2, 2))) => code::QUOTA_EXCEEDED,
        (552, _) | (_, Some((_, 2 | 3, 3 | 4))) => code::TOO_LARGE,
        (_, Some((_, 6, _))) => code::INVALID_CONTENT,
        (_, Some((_, 7, _))) => code::FORBIDDEN,
        (551 | 553 | 556, None) => code::INVALID_RECIPIENT,
        (550, None) if speaks_of_a_mailbox(reply) => code::INVALID_RECIPIENT,
        _ => code::REJECTED,
    }
}

/// A bare 550 says anything from "no such user" to "we don't like your address".
fn speaks_of_a_mailbox(reply: &SmtpReply) -> bool {
    let text = reply.text.to_lowercase();
    ["user", "mailbox", "recipient"].iter().any(|word| text.contains(word))
}

/// Class, subject and detail of the enhanced code.
fn enhanced(reply: &SmtpReply) -> Option<(u16, u16, u16)> {
    let mut parts = reply.enhanced.as_deref()?.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

fn own_code(reply: &SmtpReply) -> String {
    match &reply.enhanced {
        Some(enhanced) => format!("{} {enhanced}", reply.code),
        None => reply.code.to_string(),
    }
}

fn message(reply: &SmtpReply) -> String {
    let text: String = reply.text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    let text = text.trim();
    if text.is_empty() { format!("the server answered {}", reply.code) } else { text.to_owned() }
}
