//! What rules and scripts said to a message when it was accepted: it is kept with the message.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    decision::RuleDecision,
    script::{Hook, ScriptFault},
};

/// What was said.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ruling {
    /// By the declarative rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<RuleDecision>,
    /// By the scripts, in the order in which they were asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Word>,
}

/// What one script said.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Word {
    pub script: String,
    pub version: i32,
    pub hook: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub answer: Value,
    /// Why it said nothing: what would have been without it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Word {
    /// An answer, or a fault, as it is written down.
    pub fn new<T: Serialize>(script: &str, version: i32, hook: Hook, answer: &Result<T, ScriptFault>) -> Self {
        Self {
            script: script.to_owned(),
            version,
            hook: hook.as_str().to_owned(),
            // An answer is plain data: it always has a JSON form.
            answer: answer.as_ref().ok().and_then(|it| serde_json::to_value(it).ok()).unwrap_or_default(),
            fault: answer.as_ref().err().map(ToString::to_string),
        }
    }
}

/// Why a message is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The rule's id, or the script's name.
    pub by: String,
    /// For people.
    pub name: String,
    pub reason: String,
}
