//! Versioned documents: what a tenant writes, activates and rolls back.

/// The kind of a versioned document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DocumentKind {
    Route,
    Rule,
    Script,
}

impl DocumentKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Script => "script",
        }
    }
}
