//! Modules that scripts import: sources that the caller gives by name, compiled once. An `import` looks nowhere else.

mod calls;
mod names;

use std::{collections::BTreeMap, sync::Arc};

use rhai::{AST, ASTNode, Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Stmt};

use self::names::Names;
use super::{
    Age, Given, ScriptError, budget, compile,
    engine::{self, limits},
};

/// Compiled modules by name, with the interpreter of the scripts that import them.
#[derive(Clone)]
pub struct Modules {
    engine: Arc<Engine>,
    /// The engine for sources whose closures share variables.
    watching: Arc<Engine>,
    library: Library,
}

impl Modules {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self::of(Library::default())
    }

    /// Compiles sources by the name that scripts import them by. They may import one another, but
    /// not in a circle.
    pub fn compile(sources: &BTreeMap<String, String>) -> Result<Self, ScriptError> {
        Self::compile_as(|_| Age::New, sources)
    }

    /// The same where one of them, if there is one of this name, is about to be taken, and all others are in service.
    pub fn changed(sources: &BTreeMap<String, String>, name: &str) -> Result<Self, ScriptError> {
        Self::compile_as(|it| if it == name { Age::New } else { Age::Stored }, sources)
    }

    fn compile_as(age: impl Fn(&str) -> Age, sources: &BTreeMap<String, String>) -> Result<Self, ScriptError> {
        let mut library = Library::default();
        let mut left: Vec<_> = sources.iter().collect();
        // Each round compiles the modules whose imports are all compiled.
        while !left.is_empty() {
            let modules = Self::of(library.clone());
            let mut failed = Vec::new();
            let mut first_error = None;
            let before = left.len();
            for (name, source) in left {
                match module(&modules, name, source, age(name)) {
                    Ok(module) => {
                        library.0.insert(name.clone(), module);
                    }
                    Err(error) => {
                        first_error.get_or_insert(error);
                        failed.push((name, source));
                    }
                }
            }
            if let Some(error) = first_error
                && failed.len() == before
            {
                return Err(error);
            }
            left = failed;
        }
        Ok(Self::of(library))
    }

    fn of(library: Library) -> Self {
        let watching = engine::build_watching(library.clone()).into();
        Self { engine: engine::build(library.clone()).into(), watching, library }
    }

    /// Returns the modules in service: only valid ones are stored. If a later version of the gateway refuses one, there
    /// are none, and scripts that import them do not compile either.
    #[must_use]
    pub fn stored(sources: &BTreeMap<String, String>) -> Self {
        Self::compile_as(|_| Age::Stored, sources).unwrap_or_else(|error| {
            tracing::error!(%error, "modules that were stored don't compile");
            Self::none()
        })
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The interpreter that runs a source.
    pub(super) fn engine_for(&self, tree: &AST) -> &Arc<Engine> {
        if self.watches(tree) { &self.watching } else { &self.engine }
    }

    /// Whether closures share variables in a source or in its imports: it may import any module, by a computed name.
    pub(super) fn watches(&self, tree: &AST) -> bool {
        shares(tree) || self.library.0.values().any(|it| it.shares)
    }

    /// Refuses a tree whose calls lead nowhere, or not always to the same function: a run would find out late.
    pub(super) fn check(&self, name: &str, tree: &AST, age: Age) -> Result<(), ScriptError> {
        self.checked(name, tree, age).map(drop)
    }

    fn checked(&self, name: &str, tree: &AST, age: Age) -> Result<Names, ScriptError> {
        calls::check_modules(&self.engine, name, tree)?;
        let names = Names::of(tree);
        names.check(name, &self.library)?;
        if age == Age::New {
            let all: Vec<_> = std::iter::once(&names).chain(names.imported(&self.library).into_values()).collect();
            calls::check(name, tree, &all)?;
        }
        Ok(names)
    }
}

impl std::fmt::Debug for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modules").finish_non_exhaustive()
    }
}

/// Whether a source may import something.
#[must_use]
pub fn may_import(source: &str) -> bool {
    source.contains("import")
}

fn module(modules: &Modules, name: &str, source: &str, age: Age) -> Result<Imported, ScriptError> {
    let tree = compile::statements(&modules.engine, name, source)?;
    let names = modules.checked(name, &tree, age)?;
    let engine = modules.engine_for(&tree);
    let evaluate = || {
        let module = Module::eval_ast_as_new(Scope::new(), &tree, engine);
        (module.map_err(|error| ScriptError::of_run(name, &error)), budget::shares())
    };
    let ((module, shared), spent) = budget::within(limits::OPERATIONS, compile::TIME, Given::default(), evaluate);
    let whole =
        |reason: &str| ScriptError { script: name.to_owned(), line: None, column: None, reason: reason.to_owned() };
    let mut module = module?;
    if let Some(limit) = spent {
        return Err(whole(limit.as_str()));
    }
    if shared {
        return Err(whole("a closure at the top of a module is not allowed to use variables around it"));
    }
    module.set_id(name);
    module.build_index();
    Ok(Imported { module: module.into(), names: names.into(), shares: shares(&tree) })
}

/// Whether closures in it use variables around them.
fn shares(tree: &AST) -> bool {
    !tree.walk(&mut |path| !matches!(path.last(), Some(ASTNode::Stmt(Stmt::Share(_)))))
}

/// The modules that an `import` can find.
#[derive(Clone, Default)]
pub(crate) struct Library(BTreeMap<String, Imported>);

#[derive(Clone)]
struct Imported {
    module: Arc<Module>,
    names: Arc<Names>,
    shares: bool,
}

impl ModuleResolver for Library {
    fn resolve(
        &self,
        _: &Engine,
        _: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Arc<Module>, Box<EvalAltResult>> {
        let found = self.0.get(path).map(|it| Arc::clone(&it.module));
        found.ok_or_else(|| EvalAltResult::ErrorModuleNotFound(path.to_owned(), position).into())
    }
}
