//! The top of a script, its constants and imports: evaluated once, at compilation, and for each run only if it asks for
//! the time or for chance, or if closures share variables, which live for one run.

use std::sync::PoisonError;

use rhai::{
    AST, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, GlobalRuntimeState, Position, Scope, StmtBlock,
};

use super::{budget, limits};
use crate::allocator;

/// A script's evaluated top, below which its functions are called.
pub(super) struct Top {
    state: GlobalRuntimeState,
    fixed: bool,
}

impl Top {
    /// Evaluates it, within the budget that the caller has set.
    pub(super) fn evaluate(engine: &Engine, tree: &AST) -> Result<Self, Box<EvalAltResult>> {
        let before = allocator::balance();
        let state = state_of(engine, tree)?;
        if allocator::balance() - before > limits::CONSTANTS as isize {
            let reason = format!("the constants at the top must hold at most {} bytes together", limits::CONSTANTS);
            return Err(EvalAltResult::ErrorRuntime(reason.into(), Position::NONE).into());
        }
        Ok(Self { state, fixed: !budget::asked() && !budget::shares() })
    }

    /// Returns a constant of the script, as it was at compilation.
    pub(super) fn constant(&self, name: &str) -> Option<Dynamic> {
        let constants = self.state.constants.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
        constants.get(name).cloned()
    }

    /// Calls a function of the script.
    pub(super) fn call(
        &self,
        engine: &Engine,
        tree: &AST,
        function: &str,
        arguments: Vec<Dynamic>,
    ) -> Result<Dynamic, Box<EvalAltResult>> {
        let mut state = if self.fixed { self.state.clone() } else { state_of(engine, tree)? };
        EvalContext::new(engine, &mut state, &mut Caches::new(), &mut Scope::new(), None).call_fn(function, arguments)
    }
}

fn state_of(engine: &Engine, tree: &AST) -> Result<GlobalRuntimeState, Box<EvalAltResult>> {
    let mut state = engine.new_global_runtime_state();
    state.source = tree.source().map(Into::into);
    state.lib.push(tree.shared_lib().clone());
    if !tree.statements().is_empty() {
        let statements = tree.statements().iter().cloned();
        let top = Expr::Stmt(StmtBlock::new(statements, Position::NONE, Position::NONE).into());
        let mut scope = Scope::new();
        let mut caches = Caches::new();
        let mut context = EvalContext::new(engine, &mut state, &mut caches, &mut scope, None);
        // The function is not deprecated but, as its documentation says, may change; otherwise the tree's declarations
        // would be lost.
        #[allow(deprecated)]
        let _ = context.eval_expression_tree_raw(&(&top).into(), false)?;
    }
    Ok(state)
}
