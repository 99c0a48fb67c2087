//! Messages that many scenarios send.

use serde_json::{Value, json};

/// A webhook over the channel's route, with an empty payload.
pub fn hook() -> Value {
    json!({"channel": "webhook", "content": {"payload": {}}})
}
