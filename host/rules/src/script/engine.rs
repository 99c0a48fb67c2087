//! The interpreter: which functions there are, and how far a script may go.
//!
//! The engine is built from nothing: functions that are not listed here do not exist for a script. `sleep`, `eval`,
//! `timestamp` and everything that reaches the machine are left out, not switched off.

use std::sync::{Arc, LazyLock};

use rhai::{
    Engine, Module, OptimizationLevel,
    packages::{
        ArithmeticPackage, BasicArrayPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage, BasicMathPackage,
        BasicStringPackage, LogicPackage, MoreStringPackage, Package,
    },
};

use super::{budget, guarded, modules::Library, vocabulary};

/// How far a script may go. The reference lists them.
pub mod limits {
    use std::time::Duration;

    /// Expressions evaluated in one run.
    pub const OPERATIONS: u64 = 50_000;
    /// The time of one run, including functions that a script calls.
    pub const TIME: Duration = Duration::from_millis(5);
    /// Bytes that a run holds at once, as the allocator counts them.
    pub const MEMORY: usize = 16 * 1024 * 1024;
    /// Bytes that the constants at the top of a script hold.
    pub const CONSTANTS: usize = 1024 * 1024;
    /// Bytes of the texts and names of an answer.
    pub const ANSWER: usize = 128 * 1024;
    /// Characters of a source.
    pub const SOURCE: usize = 64 * 1024;
    /// Functions that call one another.
    pub const CALLS: usize = 16;
    /// Expressions and blocks within one another, as the parser counts them.
    pub const DEPTH: usize = 64;
    /// Nodes above a node of the syntax tree: long chains are deep without being nested.
    pub const TREE: usize = 96;
    /// Bytes of a text, or of all the texts within a list or map.
    pub const TEXT: usize = 64 * 1024;
    /// Members of a list, including those of nested lists.
    pub const LIST: usize = 1024;
    /// Members of a map, including those of nested maps.
    pub const MAP: usize = 2048;
    pub const VARIABLES: usize = 128;
    pub const FUNCTIONS: usize = 128;
    /// Modules imported in one run.
    pub const MODULES: usize = 16;
    /// The depth of a value that is printed, compared or returned.
    pub const VALUE_DEPTH: usize = 32;
}

/// Words that would lead out of a script, or make its effect undecidable; `curry` makes functions that hold copies of
/// themselves.
const DISABLED: &[&str] = &["eval", "curry"];

/// All functions in one module: each look-up of one goes through every module that there is.
static FUNCTIONS: LazyLock<Arc<Module>> = LazyLock::new(|| {
    let mut all = Module::new();
    for package in [
        ArithmeticPackage::new().as_shared_module(),
        LogicPackage::new().as_shared_module(),
        BasicMathPackage::new().as_shared_module(),
        BasicFnPackage::new().as_shared_module(),
        BasicIteratorPackage::new().as_shared_module(),
        BasicStringPackage::new().as_shared_module(),
        MoreStringPackage::new().as_shared_module(),
        BasicArrayPackage::new().as_shared_module(),
        BasicMapPackage::new().as_shared_module(),
        // Guarded functions replace their namesakes above.
        guarded::module().into(),
        vocabulary::module().into(),
    ] {
        all.merge(&package);
    }
    all.build_index();
    all.into()
});

/// Returns an interpreter whose imports come from `library`.
pub(crate) fn build(library: Library) -> Engine {
    let mut engine = Engine::new_raw();
    engine.register_global_module(Arc::clone(&FUNCTIONS));
    for word in DISABLED {
        engine.disable_symbol(*word);
    }
    engine
        .set_optimization_level(OptimizationLevel::None)
        .set_strict_variables(true)
        .set_max_call_levels(limits::CALLS)
        .set_max_expr_depths(limits::DEPTH, limits::DEPTH)
        .set_max_string_size(limits::TEXT)
        .set_max_array_size(limits::LIST)
        .set_max_map_size(limits::MAP)
        .set_max_variables(limits::VARIABLES)
        .set_max_functions(limits::FUNCTIONS)
        .set_max_modules(limits::MODULES)
        .set_module_resolver(library)
        .on_progress(|_| budget::step())
        .on_print(budget::log)
        .on_debug(|text, _, _| budget::log(text));
    engine
}

/// Returns the same for sources whose closures share variables: a variable that becomes shared is read right then, and
/// each reading is seen. Other sources avoid this cost.
pub(super) fn build_watching(library: Library) -> Engine {
    let mut engine = build(library);
    // It is not deprecated but, as its documentation says, may change.
    #[allow(deprecated)]
    engine.on_var(|name, _, mut context| {
        budget::see(context.scope_mut(), name);
        Ok(None)
    });
    engine
}

/// Returns an engine with only the gateway's additions to the language, for the reference.
pub(crate) fn vocabulary_only() -> Engine {
    let mut engine = Engine::new_raw();
    let mut module = vocabulary::module();
    module.build_index();
    engine.register_global_module(module.into());
    engine
}
