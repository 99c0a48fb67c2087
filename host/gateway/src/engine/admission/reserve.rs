//! The fourth stage: what messages take up once they are accepted. Today this is capacity of this node, for the messages
//! that it is to begin at once. The slots themselves are taken with the commit, so that no request holds some while it
//! waits for a writer.

use jiff::Timestamp;

use super::{
    Admission,
    intake::{Intake, IntakeMessage, Purpose},
};
use crate::clock;
use angarium_domain::message::Message;

impl Admission {
    /// Says which open messages this node is to begin at once; all others wait in the queue or in their key's line.
    pub(super) fn reserve(&self, intake: &mut Intake) {
        if intake.purpose == Purpose::Try || self.outlet.handoff.is_none() {
            return;
        }
        let now = clock::now();
        for message in &mut intake.messages {
            if let IntakeMessage::Open(open) = message {
                open.starts_here = may_start(&open.new.message, now);
            }
        }
    }
}

/// Whether a message is due, and waits for no turn.
fn may_start(message: &Message, now: Timestamp) -> bool {
    message.ordering_key.is_none() && message.due_at() <= now
}
