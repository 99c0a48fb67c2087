//! Experiments: variants that are tried beside the live version, and their counts.

use super::document::DocumentKind;

/// The kind of document that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExperimentKind {
    Script,
    Rule,
}

impl ExperimentKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Rule => "rule",
        }
    }

    /// The same among all kinds of documents.
    #[must_use]
    pub const fn document(self) -> DocumentKind {
        match self {
            Self::Script => DocumentKind::Script,
            Self::Rule => DocumentKind::Rule,
        }
    }
}

/// The effect that a variant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExperimentMode {
    /// It is asked, and not followed.
    Shadow,
    /// It decides about a part of the recipients.
    Canary { percentage: u8 },
}

impl ExperimentMode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary { .. } => "canary",
        }
    }

    /// Of recipients; `None` for a shadow.
    #[must_use]
    pub const fn percentage(self) -> Option<u8> {
        match self {
            Self::Shadow => None,
            Self::Canary { percentage } => Some(percentage),
        }
    }
}

/// The version that decided about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arm {
    Live,
    Variant,
}

impl Arm {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Variant => "variant",
        }
    }
}

/// A figure that is counted for an arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExperimentCount {
    /// It had its say on a message that came in; of a shadow: on a hook's question.
    Asked,
    Refused,
    Held,
    /// Runs that failed.
    Faults,
    /// Answers of a shadow that differ from the live ones.
    Different,
    /// Questions that a shadow was not asked, since it could not keep up.
    Dropped,
}

impl ExperimentCount {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Refused => "refused",
            Self::Held => "held",
            Self::Faults => "faults",
            Self::Different => "different",
            Self::Dropped => "dropped",
        }
    }
}
