//! What stands at the top of a script, its constants and imports: evaluated once, when it is compiled, and for each run
//! only where it asks for the time or for chance.

use rhai::{
    AST, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, GlobalRuntimeState, Position, Scope, StmtBlock,
};

/// A script's top, and how its functions are called below it.
#[derive(Clone)]
pub(super) struct Top {
    state: GlobalRuntimeState,
    fixed: bool,
}

impl Top {
    /// Evaluates it, within the budget that the caller has set.
    pub(super) fn evaluate(engine: &Engine, tree: &AST) -> Result<Self, Box<EvalAltResult>> {
        let state = state_of(engine, tree)?;
        Ok(Self { state, fixed: !super::budget::asked() })
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
        // It is not deprecated but, as its documentation says, may change; what it declares would be gone otherwise.
        #[allow(deprecated)]
        let _ = context.eval_expression_tree_raw(&(&top).into(), false)?;
    }
    Ok(state)
}
