//! Why a use case does not do what it was asked; it knows no status of HTTP, which `api/problem` has.

use super::fields::FieldProblem;
use angarium_store::tenant::MOST_CONFIG;

pub use angarium_store::StoreError;

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
    /// A provider's component is not admitted.
    #[error("{0}")]
    ComponentRefused(String),
    /// It may work later.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The database can't be reached, or takes no writes now; the text is for the log.
    #[error("the database is not available: {0}")]
    DatabaseDown(String),
    /// The database's disk is full; the text is for the log.
    #[error("the database's disk is full: {0}")]
    DiskFull(String),
    /// The gateway failed; the text is for the log.
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for UseCaseError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(reason) => Self::DatabaseDown(reason.to_string()),
            StoreError::Full(reason) => Self::DiskFull(reason.to_string()),
            StoreError::Conflict { constraint } => {
                Self::conflict("conflict", format!("another request came first (`{constraint}`)"))
            }
            StoreError::ConfigTooLarge { bytes } => Self::conflict(
                "configuration_too_large",
                format!(
                    "the tenant's connections, active routes, rules and scripts in service must come to at most \
                     {MOST_CONFIG} bytes together (got {bytes}): delete or deactivate what is not used"
                ),
            ),
            StoreError::Failed(_) => Self::internal(&error),
        }
    }
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
