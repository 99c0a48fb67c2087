//! The outline of a message: the data beside the client's objects that expressions and scripts see.

use jiff::Timestamp;

use crate::message::{Message, Priority};

/// The longest text that is looked at, in characters.
pub const MAX_TEXT: usize = 8 * 1024;

/// A message's outside, as its first channel sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MessageOutline {
    /// Empty while it is not accepted.
    pub id: String,
    pub channel: String,
    /// All of them, in order.
    pub channels: Vec<String>,
    pub to: String,
    pub sender: String,
    pub subject: String,
    /// The beginning of its plain text.
    pub text: String,
    pub reference: Option<String>,
    pub priority: Priority,
    pub created_at: Option<Timestamp>,
    pub send_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
}

impl MessageOutline {
    /// Returns the outline of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let leg = message.first();
        let content = &leg.content;
        Self {
            id: message.id.to_string(),
            channel: leg.channel.as_str().to_owned(),
            channels: message.legs.channels().map(|it| it.as_str().to_owned()).collect(),
            to: leg.recipient().to_owned(),
            sender: content.from.as_ref().map(|from| from.address.clone()).unwrap_or_default(),
            subject: content.subject.clone().unwrap_or_default(),
            text: content.text.as_deref().map(beginning).unwrap_or_default().to_owned(),
            reference: message.reference.clone(),
            priority: message.priority,
            created_at: Some(message.created_at),
            send_at: message.send_at,
            expires_at: message.expires_at,
        }
    }

    /// The same before it is accepted: it has no id yet, and no time.
    #[must_use]
    pub fn unaccepted(mut self) -> Self {
        self.id.clear();
        self.created_at = None;
        self
    }
}

/// Returns the examined beginning of a text.
pub fn beginning(text: &str) -> &str {
    // A text that has no more bytes has no more characters.
    let end = if text.len() > MAX_TEXT { text.char_indices().nth(MAX_TEXT) } else { None };
    end.map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_looked_at_by_characters() {
        let long = "é".repeat(MAX_TEXT);
        assert_eq!(beginning("short"), "short");
        assert_eq!(beginning(&long), long);
        assert_eq!(beginning(&format!("{long}more")), long);
    }
}
