//! The functions behind the names that a source calls. The interpreter remembers the target of a bare name for a whole
//! run, whatever calls it: if a script and a module, or two modules, use one name for different functions, it may
//! confuse them. Such sources are refused.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, ImmutableString, Position, Stmt};

use super::{
    super::{ScriptError, column_of, line_of},
    Library,
};

/// A function's name, and how many parameters it has.
type Signature = (ImmutableString, usize);

/// The functions of a source, and those that it calls by their bare names.
#[derive(Default)]
pub(super) struct Names {
    defined: BTreeSet<Signature>,
    called: BTreeMap<Signature, Position>,
    imports: BTreeSet<String>,
    /// Names that a member of a map may have: a function may be in it.
    members: BTreeSet<ImmutableString>,
}

impl Names {
    pub(super) fn of(tree: &AST) -> Self {
        let defined = tree.iter_functions().map(|it| (it.name.into(), it.params.len())).collect();
        let mut names = Self { defined, ..Self::default() };
        tree.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Stmt(Stmt::Import(import, _))) => {
                    if let Expr::StringConstant(from, _) = &import.0 {
                        names.imports.insert(from.to_string());
                    }
                }
                Some(ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at)))
                    if call.namespace.is_empty() =>
                {
                    names.called.insert((call.name.clone(), call.args.len()), *at);
                }
                Some(ASTNode::Expr(Expr::Map(members, _))) => {
                    names.members.extend(members.0.iter().map(|(name, _)| name.name.clone()));
                }
                Some(ASTNode::Expr(Expr::StringConstant(text, _))) => {
                    names.members.insert(text.clone());
                }
                Some(ASTNode::Stmt(Stmt::Assignment(assignment))) => {
                    names.members.extend(last_property(&assignment.1.lhs));
                }
                // As a function with `this`, or with the object as the first parameter.
                Some(ASTNode::Expr(Expr::MethodCall(call, at))) => {
                    for parameters in [call.args.len(), call.args.len() + 1] {
                        names.called.insert((call.name.clone(), parameters), *at);
                    }
                }
                _ => {}
            }
            true
        });
        names
    }

    /// Whether it has a function of this name with this number of parameters.
    pub(super) fn defines(&self, name: &str, parameters: usize) -> bool {
        self.parameters_of(name).any(|it| it == parameters)
    }

    /// The numbers of parameters of its functions of this name.
    pub(super) fn parameters_of(&self, name: &str) -> impl Iterator<Item = usize> {
        let from = (ImmutableString::from(name), 0);
        let name = from.0.clone();
        self.defined.range(from..).take_while(move |(it, _)| *it == name).map(|(_, parameters)| *parameters)
    }

    /// The names of its functions.
    pub(super) fn functions(&self) -> impl Iterator<Item = &str> {
        self.defined.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a map of its may have a member of this name.
    pub(super) fn has_member(&self, name: &str) -> bool {
        self.members.contains(name)
    }

    /// Returns the names of all its imports, by name.
    pub(super) fn imported<'a>(&'a self, library: &'a Library) -> BTreeMap<&'a str, &'a Self> {
        let mut all = BTreeMap::new();
        let mut left: Vec<_> = self.imports.iter().collect();
        while let Some(module) = left.pop() {
            if let Some((module, imported)) = library.0.get_key_value(module)
                && all.insert(module.as_str(), &*imported.names).is_none()
            {
                left.extend(&imported.names.imports);
            }
        }
        all
    }

    /// Refuses the source if a name is ambiguous among it and all of its imports.
    pub(super) fn check(&self, name: &str, library: &Library) -> Result<(), ScriptError> {
        let mut all = self.imported(library);
        all.insert(name, self);
        let sources: Vec<_> = all.into_iter().collect();
        for (at, (one, names)) in sources.iter().enumerate() {
            for (other, others) in &sources[at + 1..] {
                if let Some((function, parameters)) = names.ambiguous(others) {
                    let reason = format!(
                        "`{function}` of {parameters} arguments is called in `{one}` and in `{other}` and is not the \
                         same function: give it another name in one of them"
                    );
                    let position = self.called.get(&(function.clone(), *parameters)).copied().unwrap_or(Position::NONE);
                    let (line, column) = (line_of(position), column_of(position));
                    return Err(ScriptError { script: name.to_owned(), line, column, reason });
                }
            }
        }
        Ok(())
    }

    fn ambiguous(&self, other: &Self) -> Option<&Signature> {
        let defined = |it: &&Signature| self.defined.contains(*it) || other.defined.contains(*it);
        self.called.keys().filter(|it| other.called.contains_key(*it)).find(defined)
    }
}

/// The member that an assignment sets: `f` of `map.tools.f`.
fn last_property(target: &Expr) -> Option<ImmutableString> {
    match target {
        Expr::Dot(chain, ..) | Expr::Index(chain, ..) => last_property(&chain.rhs),
        Expr::Property(property, _) => Some(property.2.clone()),
        _ => None,
    }
}
