//! From a source to a syntax tree that is safe to keep and to walk.
//!
//! A parser, and every function that walks or drops its tree, recurses as deep as the source nests. A source is
//! therefore parsed with a large stack, and a tree that is too deep never leaves it.

use std::{thread, time::Duration};

use rhai::{AST, Engine, ParseError, Scope};

use super::{ScriptError, engine::limits};

/// The time for evaluating the constants and imports at the top of a source.
pub(super) const TIME: Duration = Duration::from_millis(200);

/// Sources up to here are parsed on the caller's stack: they can't be deep enough to fill it.
const SMALL: usize = 512;
const STACK: usize = 256 * 1024 * 1024;

/// A whole source.
pub(super) fn statements(engine: &Engine, name: &str, source: &str) -> Result<AST, ScriptError> {
    parse(name, source, || engine.compile(source))
}

/// A single expression over the variables of `scope`.
pub(super) fn expression(engine: &Engine, scope: &Scope, name: &str, source: &str) -> Result<AST, ScriptError> {
    parse(name, source, || engine.compile_expression_with_scope(scope, source))
}

fn parse(
    name: &str,
    source: &str,
    parser: impl FnOnce() -> Result<AST, ParseError> + Send,
) -> Result<AST, ScriptError> {
    let whole = |reason: String| ScriptError { script: name.to_owned(), line: None, column: None, reason };
    let length = source.chars().count();
    if length > limits::SOURCE {
        return Err(whole(format!("must have at most {} characters (got {length})", limits::SOURCE)));
    }
    let bounded = || {
        let mut tree = parser().map_err(|error| ScriptError::of_parse(name, &error))?;
        let shallow = tree.walk(&mut |path| path.len() <= limits::TREE);
        if !shallow {
            return Err(whole(format!("an expression or a chain must have at most {} parts", limits::TREE)));
        }
        tree.set_source(name);
        Ok(tree)
    };
    if source.len() <= SMALL {
        return bounded();
    }
    thread::scope(|scope| {
        let room = thread::Builder::new().name("rules".to_owned()).stack_size(STACK).spawn_scoped(scope, bounded);
        match room.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(tree)) => tree,
            Ok(Err(_)) => Err(whole("the parser failed".to_owned())),
            Err(error) => Err(whole(format!("there is no room to parse it: {error}"))),
        }
    })
}
