//! The outcome for each recipient of a delivery to several: a mail and its copies.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    message::address,
    transmission::{RecipientAnswer, RecipientReply},
};

/// The longest text of a server that is kept of a recipient, in characters.
const LONGEST_DETAIL: usize = 300;

/// The outcome for a recipient, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecipientOutcome {
    /// The server took the mail for it.
    Accepted,
    /// The server refused it for now: it is tried again.
    Deferred,
    /// The server refused it for good, or it is not tried again.
    Refused,
}

/// The role of a recipient: named in the `To` header, or a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecipientRole {
    To,
    /// Of `cc` or `bcc`.
    Copy,
}

/// A recipient of a mail with copies, and its last known outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MailRecipient {
    /// As in the envelope.
    #[schema(example = "bob@example.org")]
    pub address: String,
    pub role: RecipientRole,
    pub outcome: RecipientOutcome,
    /// The server's code.
    #[schema(example = "451 4.7.1")]
    pub code: String,
    /// The server's text.
    pub detail: String,
    /// The number of the attempt that says so.
    pub attempt: u32,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// The recipients of a delivery, each once. Empty if the delivery's state is sufficient.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recipients(Vec<MailRecipient>);

impl Recipients {
    /// Returns the server's answer for each recipient of an accepted attempt.
    #[must_use]
    pub fn answered(replies: Vec<RecipientReply>, attempt: u32, at: Timestamp) -> Self {
        let recipient = |reply: RecipientReply| MailRecipient {
            role: if reply.main { RecipientRole::To } else { RecipientRole::Copy },
            outcome: match reply.answer {
                RecipientAnswer::Accepted => RecipientOutcome::Accepted,
                RecipientAnswer::Deferred | RecipientAnswer::TooMany => RecipientOutcome::Deferred,
                RecipientAnswer::Refused => RecipientOutcome::Refused,
            },
            code: reply
                .enhanced
                .map_or_else(|| reply.code.to_string(), |enhanced| format!("{} {enhanced}", reply.code)),
            detail: plain(&reply.text),
            address: reply.address,
            attempt,
            at,
        };
        Self(replies.into_iter().map(recipient).collect())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &MailRecipient> {
        self.0.iter()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes over newer outcomes.
    pub fn learn(&mut self, news: &Self) {
        for recipient in &news.0 {
            match self.0.iter_mut().find(|known| address::are_same(&known.address, &recipient.address)) {
                Some(known) => known.clone_from(recipient),
                None => self.0.push(recipient.clone()),
            }
        }
    }

    /// Whether the recipient of the `To` header has the mail; of a mail to copies alone, whether anybody has it.
    #[must_use]
    pub fn main_is_served(&self) -> bool {
        let main = self.0.iter().filter(|it| it.role == RecipientRole::To).map(|it| it.outcome).max();
        match main {
            Some(worst) => worst == RecipientOutcome::Accepted,
            None => self.0.iter().any(|it| it.outcome == RecipientOutcome::Accepted),
        }
    }

    /// Whether the recipient of the `To` header is among them.
    #[must_use]
    pub fn have_main(&self) -> bool {
        self.0.iter().any(|it| it.role == RecipientRole::To)
    }

    /// Whether a recipient is to be tried again.
    #[must_use]
    pub fn are_waiting(&self) -> bool {
        self.0.iter().any(|it| it.outcome == RecipientOutcome::Deferred)
    }

    /// Whether this address needs no further try: it has the mail, or was refused for good.
    #[must_use]
    pub fn is_settled(&self, address: &str) -> bool {
        self.0.iter().any(|it| it.outcome != RecipientOutcome::Deferred && address::are_same(&it.address, address))
    }

    /// Returns the waiting recipients as refused: nothing more is tried for them.
    #[must_use]
    pub fn given_up(&self, attempt: u32, at: Timestamp) -> Self {
        let waiting = self.0.iter().filter(|it| it.outcome == RecipientOutcome::Deferred);
        let given_up = |it: &MailRecipient| MailRecipient {
            outcome: RecipientOutcome::Refused,
            detail: format!("{}; it is not tried again", it.detail),
            attempt,
            at,
            ..it.clone()
        };
        Self(waiting.map(given_up).collect())
    }

    /// As the database keeps them; `None` if there are none.
    #[must_use]
    pub fn as_json(&self) -> Option<String> {
        // Plain data always has a JSON form.
        if self.is_empty() { None } else { serde_json::to_string(self).ok() }
    }
}

/// Returns a server's text on one line, without characters that a database or a terminal cannot handle.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_DETAIL)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(replies: &[(&str, bool, RecipientAnswer, &str)]) -> Recipients {
        let reply = |&(address, main, answer, text): &(&str, bool, RecipientAnswer, &str)| RecipientReply {
            address: address.to_owned(),
            main,
            answer,
            code: 451,
            enhanced: Some("4.7.1".to_owned()),
            text: text.to_owned(),
        };
        Recipients::answered(replies.iter().map(reply).collect(), 1, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_is_newer_replaces_what_was_known_of_the_same_mailbox() {
        let mut known = answered(&[
            ("ann@example.org", true, RecipientAnswer::Accepted, "ok"),
            ("bob@Example.org", false, RecipientAnswer::Deferred, "later\r\n\0"),
        ]);
        assert!(known.main_is_served() && known.are_waiting());
        assert!(known.is_settled("ann@EXAMPLE.org") && !known.is_settled("bob@example.org"));
        assert_eq!(known.iter().last().unwrap().detail, "later");
        known.learn(&answered(&[("bob@example.org", false, RecipientAnswer::Accepted, "ok")]));
        assert_eq!(known.len(), 2);
        assert!(!known.are_waiting() && known.is_settled("bob@example.org"));
        assert!(!known.is_settled("Bob@example.org"), "the local part has its case");
    }

    #[test]
    fn of_a_mail_to_copies_alone_anybody_will_do() {
        let copies = |answer| {
            answered(&[
                ("ann@example.org", false, RecipientAnswer::Deferred, "later"),
                ("bob@example.org", false, answer, "ok"),
            ])
        };
        assert!(
            copies(RecipientAnswer::Accepted).main_is_served() && !copies(RecipientAnswer::Refused).main_is_served()
        );
        assert!(!Recipients::default().main_is_served());
        let mut known = copies(RecipientAnswer::Accepted);
        known.learn(&answered(&[("eve@example.org", true, RecipientAnswer::Deferred, "later")]));
        assert!(!known.main_is_served() && known.have_main(), "whom it is to lacks it");
    }

    #[test]
    fn those_that_wait_are_given_up_and_nobody_else() {
        let mut known = answered(&[
            ("ann@example.org", true, RecipientAnswer::Accepted, "ok"),
            ("bob@example.org", false, RecipientAnswer::TooMany, "too many"),
        ]);
        let lost = known.given_up(3, Timestamp::UNIX_EPOCH);
        assert_eq!(lost.len(), 1);
        known.learn(&lost);
        let bob = known.iter().last().unwrap();
        assert_eq!((bob.outcome, bob.attempt), (RecipientOutcome::Refused, 3));
        assert_eq!(bob.detail, "too many; it is not tried again");
        assert!(known.main_is_served() && !known.are_waiting());
    }
}
