//! Why a use case does not do what it was asked; it knows no status of HTTP, which `api/problem` has.

use super::fields::FieldProblem;
use angarium_store::StoreError;

/// The answer of a use case that changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum UseCaseError {
    /// It does not exist, or belongs to another tenant.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The present state does not allow it.
    #[error("{detail}")]
    Conflict {
        /// Stable, for programs.
        code: &'static str,
        detail: String,
    },
    /// These fields are wrong; there is at least one.
    #[error("{} fields are wrong", .0.len())]
    Invalid(Vec<FieldProblem>),
    /// It may work later.
    #[error("{0}")]
    Unavailable(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The gateway failed; the text is for its log.
    #[error("{0}")]
    Internal(String),
}

impl UseCaseError {
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict { code, detail: detail.into() }
    }

    /// One field is wrong.
    pub fn field(pointer: impl Into<String>, code: &str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldProblem::new(pointer, code, detail)])
    }

    /// The gateway failed for this reason.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}
