//! The top of a script, its constants and imports: evaluated once, at compilation, and for each run only if it asks for
//! the time or for chance, or if closures share variables, which live for one run. Resolved functions of a run are kept
//! for the next.

use std::{
    cell::Cell,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rhai::{
    AST, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, GlobalRuntimeState, Position, Scope, StmtBlock,
};

use super::{budget, limits};
use crate::allocator;

/// The most look-ups that are kept: a script may make up names of functions as it runs.
const MOST_FOUND: usize = 256;

thread_local! {
    /// The resolved functions of the closures of this thread's run.
    static CLOSURES: Cell<Option<Caches>> = const { Cell::new(None) };
}

/// A script's top, and how its functions are called below it.
pub(super) struct Top {
    state: GlobalRuntimeState,
    fixed: bool,
    found: Mutex<Option<Found>>,
}

/// The function that each call led to, in functions and in closures that native functions call.
#[derive(Default)]
struct Found {
    functions: Caches,
    closures: Caches,
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
        Ok(Self { state, fixed: !budget::asked() && !budget::shares(), found: Mutex::default() })
    }

    /// A constant of its, as it was when the script was compiled.
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
        let Found { mut functions, closures } = self.found().take().unwrap_or_default();
        let lent = Lent::new(closures);
        let answer = EvalContext::new(engine, &mut state, &mut functions, &mut Scope::new(), None)
            .call_fn(function, arguments)?;
        self.keep(Found { functions, closures: lent.back() });
        Ok(answer)
    }

    fn found(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, mut found: Found) {
        let small = |caches: &mut Caches| caches.fn_resolution_cache_mut().dict.len() <= MOST_FOUND;
        if self.fixed && small(&mut found.functions) && small(&mut found.closures) {
            *self.found() = Some(found);
        }
    }
}

/// The caches lent to the closures of a run; the next run on the thread gets none of them.
struct Lent;

impl Lent {
    fn new(closures: Caches) -> Self {
        CLOSURES.set(Some(closures));
        Self
    }

    fn back(self) -> Caches {
        CLOSURES.take().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        CLOSURES.set(None);
    }
}

/// Takes the closures' resolved functions of this run, until [`give_back`]; closures within them begin again.
pub(super) fn take() -> Caches {
    CLOSURES.take().unwrap_or_default()
}

/// Returns the taken functions to the closures after it.
pub(super) fn give_back(closures: Caches) {
    CLOSURES.set(Some(closures));
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
