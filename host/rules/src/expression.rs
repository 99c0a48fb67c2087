//! The seam to the language of custom conditions: rules know no more of it than this.

use std::{any::Any, cell::RefCell, fmt::Debug};

use jiff::Timestamp;

use super::allowance::Spent;
use angarium_domain::rule_input::RuleInput;

/// An expression within one rule set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpressionId(pub u32);

/// The reason for which an expression gave no boolean: it threw, took too long, or returned another kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ExpressionFault {
    pub reason: String,
    /// It was not asked, since there was no time left.
    pub unasked: Option<Spent>,
}

impl ExpressionFault {
    /// A fault of the expression's own.
    #[must_use]
    pub const fn new(reason: String) -> Self {
        Self { reason, unasked: None }
    }
}

impl From<Spent> for ExpressionFault {
    fn from(spent: Spent) -> Self {
        Self { reason: spent.as_str().to_owned(), unasked: Some(spent) }
    }
}

/// The language's form of a message: kept between the expressions about it.
pub type Memo = RefCell<Option<Box<dyn Any>>>;

/// The expressions of one rule set.
pub trait Expressions: Debug + Send + Sync {
    /// Takes in an expression, once for all messages.
    ///
    /// # Errors
    /// Returns a fault with line and column if it is invalid.
    fn compile(&mut self, source: &str) -> Result<ExpressionId, ExpressionFault>;

    /// Whether an expression holds of a message; `memo` is the same for all that are asked of it.
    ///
    /// # Errors
    /// When it returns no boolean.
    fn holds(
        &self,
        expression: ExpressionId,
        input: &RuleInput,
        now: Timestamp,
        memo: &Memo,
    ) -> Result<bool, ExpressionFault>;
}

/// The absence of a language: a rule with an expression is refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoExpressions;

impl Expressions for NoExpressions {
    fn compile(&mut self, _: &str) -> Result<ExpressionId, ExpressionFault> {
        Err(no_language())
    }

    fn holds(&self, _: ExpressionId, _: &RuleInput, _: Timestamp, _: &Memo) -> Result<bool, ExpressionFault> {
        Err(no_language())
    }
}

fn no_language() -> ExpressionFault {
    ExpressionFault::new("is not allowed here: there is no language of expressions".to_owned())
}
