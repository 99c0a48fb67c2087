//! Copies of a mail: the recipients of a further attempt, and the consequences of each recipient's answer.
//!
//! A mail is one delivery, for any number of recipients. Once the recipient of the `To` header has it, further attempts
//! go only to the copies that were refused for now, and the delivery ends as `sent`, whatever ends them.

use jiff::Timestamp;

use crate::engine::queue::Work;
use angarium_domain::{
    attempt::{Attempt, Verdict},
    delivery::DeliveryState,
    outcome::{Copies, Outcome, host_verdict},
    provider::Disposition,
    recipients::Recipients,
    transmission::{RecipientAnswer, RecipientReply, SmtpSubmission, Transmission},
};

/// The transmission without the recipients that are settled. One that is no mail would go to all of them: it is refused.
pub fn to_those_left(transmission: Transmission, recipients: &Recipients) -> Result<Transmission, Box<Verdict>> {
    if recipients.is_empty() {
        return Ok(transmission);
    }
    let refused =
        |detail: &str| Box::new(host_verdict(Disposition::RejectedPermanent, "recipients_served", detail.to_owned()));
    match transmission {
        Transmission::Smtp(mut mail) => {
            let SmtpSubmission { rcpt_to, .. } = &mut *mail;
            rcpt_to.retain(|address| !recipients.is_settled(address));
            if rcpt_to.is_empty() {
                return Err(refused("each of its recipients has the mail or refused it for good"));
            }
            Ok(Transmission::Smtp(mail))
        }
        Transmission::Http(_) => {
            Err(refused("some recipients have the mail, and this provider can only send to all of them"))
        }
    }
}

/// Returns the answer for each recipient as far as the verdict allows: if the provider does not accept the mail, no
/// recipient has it.
pub fn judged(mut replies: Vec<RecipientReply>, verdict: &Verdict) -> Vec<RecipientReply> {
    if verdict.disposition != Disposition::Accepted {
        replies.retain(|it| it.answer != RecipientAnswer::Accepted);
    }
    replies
}

/// Returns the recipients that an attempt records: none if there is only one, because the delivery's state says all
/// about it.
pub fn of_attempt(work: &Work, replies: Vec<RecipientReply>, number: u32, at: Timestamp) -> Recipients {
    if replies.len() < 2 && work.recipients.is_empty() {
        return Recipients::default();
    }
    Recipients::answered(replies, number, at)
}

/// Whether an attempt for copies alone was refused by them: that says nothing of the connection.
pub fn are_refused(attempt: &Attempt) -> bool {
    let disposition = attempt.verdict.disposition;
    let refused = matches!(disposition, Disposition::RejectedTransient | Disposition::RejectedPermanent);
    refused && !attempt.recipients.is_empty()
}

/// Returns the state of the copies after an attempt, whose results the delivery's recipients already have.
pub fn after(work: &Work, attempt: &Attempt) -> Copies {
    if !work.recipients.main_is_served() {
        Copies::None
    } else if !work.recipients.are_waiting() {
        Copies::Settled
    } else if attempt.further {
        Copies::Further
    } else {
        Copies::Waiting
    }
}

/// Returns the outcome of a delivery whose recipients are known. If its main recipient has it, it was sent, and copies
/// that still wait are refused with its end.
pub fn concluded(work: &mut Work, attempt: &mut Attempt, outcome: Outcome) -> Outcome {
    let outcome = match outcome {
        Outcome::End(DeliveryState::Unknown) | Outcome::Retry(_) | Outcome::FallBack(_) => return outcome,
        Outcome::Sent | Outcome::End(_) if work.recipients.main_is_served() => Outcome::Sent,
        ended => ended,
    };
    let given_up = work.recipients.given_up(attempt.number, attempt.finished_at);
    attempt.recipients.learn(&given_up);
    work.recipients.learn(&given_up);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::transmission::{HttpRequest, Mail, Mailbox, Method, RecipientReply, SmtpTimeouts, SmtpTls};

    fn mail(recipients: &[&str]) -> Transmission {
        let sender = Mailbox { value: "shop@example.org".to_owned(), name: None };
        Transmission::Smtp(Box::new(SmtpSubmission {
            host: "localhost".to_owned(),
            port: 25,
            tls: SmtpTls::None,
            user: None,
            password: None,
            client_name: String::new(),
            mail_from: sender.value.clone(),
            rcpt_to: recipients.iter().map(|it| (*it).to_owned()).collect(),
            message: Mail {
                sender,
                reply_to: vec![],
                to: vec![],
                cc: vec![],
                subject: String::new(),
                message_id: "1@example.org".to_owned(),
                date_ms: 0.0,
                text: None,
                html: None,
                headers: vec![],
                blobs: vec![],
            },
            dkim: None,
            timeouts: SmtpTimeouts::default(),
        }))
    }

    fn known() -> Recipients {
        let reply = |(address, main, answer): (&str, bool, RecipientAnswer)| RecipientReply {
            address: address.to_owned(),
            main,
            answer,
            code: 250,
            enhanced: None,
            text: String::new(),
        };
        let replies = [
            ("ann@example.org", true, RecipientAnswer::Accepted),
            ("bob@example.org", false, RecipientAnswer::Deferred),
            ("cyd@example.org", false, RecipientAnswer::Refused),
        ];
        Recipients::answered(replies.map(reply).into(), 1, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_further_mail_goes_to_those_that_wait_alone() {
        let all = ["ann@EXAMPLE.org", "bob@example.org", "cyd@example.org"];
        assert_eq!(to_those_left(mail(&all), &known()), Ok(mail(&["bob@example.org"])));
        assert_eq!(to_those_left(mail(&all), &Recipients::default()), Ok(mail(&all)));
        assert!(to_those_left(mail(&all[..1]), &known()).is_err(), "nobody is left");
    }

    #[test]
    fn what_can_only_go_to_all_goes_to_nobody() {
        let request = HttpRequest {
            method: Method::Post,
            url: "https://example.org".to_owned(),
            headers: vec![],
            body: vec![],
            auth: vec![],
            timeout_ms: None,
        };
        let request = Transmission::Http(Box::new(request));
        let refused = to_those_left(request.clone(), &known()).unwrap_err();
        assert_eq!((refused.disposition, refused.code.as_str()), (Disposition::RejectedPermanent, "recipients_served"));
        assert_eq!(to_those_left(request.clone(), &Recipients::default()), Ok(request));
    }
}
