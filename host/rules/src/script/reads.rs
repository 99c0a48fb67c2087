//! The facts that a script reads: the members that its source names. It receives only those, and is asked again only if
//! they differ.

use std::collections::HashSet;

use rhai::{AST, ASTFlags, ASTNode, BinaryExpr, Expr, FnCallExpr, ImmutableString, Stmt};

use super::Hook;

/// Facts that are objects of the client's own.
const OBJECTS: &[&str] = &["attributes", "contact", "context"];

/// Members that are always given: they identify a candidate in the answer.
const ALWAYS: &[&str] = &["connection", "score"];

/// Functions that look at a map as a whole, and at nothing else.
const WHOLE: &[&str] = &["keys", "values", "to_json", "to_string", "to_debug", "print", "debug", "mixin", "fill_with"];

/// The same that look at other things too: they count where facts are named beside them.
const WHOLE_OR_OTHER: &[&str] =
    &["contains", "==", "!=", "+", "+=", "len", "is_empty", "filter", "map", "retain", "drain", "call"];

/// Functions that take a member's name.
const BY_NAME: &[&str] = &["get", "remove", "pluck", "sorted_by"];

/// The members that a source, with its imports, may read.
#[derive(Debug, Clone, Default)]
pub(super) struct Reads {
    /// Names of members, and texts that may be such.
    names: HashSet<ImmutableString, ahash::RandomState>,
    /// The [`OBJECTS`] that are used other than by members' names.
    whole: HashSet<&'static str, ahash::RandomState>,
    /// Whether it may read anything.
    all: bool,
}

impl Reads {
    /// Anything.
    #[cfg(test)]
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    pub fn of(tree: &AST) -> Self {
        let hooks = tree.iter_functions().filter(|it| Hook::ALL.iter().any(|hook| hook.as_str() == it.name));
        let mut reader =
            Reader { facts: hooks.filter_map(|it| it.params.first().copied()).collect(), reads: Self::default() };
        tree.walk(&mut |path| {
            match path {
                [above @ .., ASTNode::Expr(it)] => reader.see(above, it),
                [.., ASTNode::Stmt(Stmt::FnCall(call, _))] => reader.see_call(call, 1),
                // An import by a computed name is unknown here.
                [.., ASTNode::Stmt(Stmt::Import(import, _))] => reader.reads.all |= text_of(&import.0).is_none(),
                _ => {}
            }
            true
        });
        reader.reads
    }

    /// With what another source reads.
    pub fn and(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        self.whole.extend(&other.whole);
        self.all |= other.all;
    }

    /// Whether it may read a member of this name.
    pub fn has(&self, name: &str) -> bool {
        self.all || ALWAYS.contains(&name) || self.names.contains(name)
    }

    /// Whether it may read any member of this object.
    pub fn has_all_of(&self, object: &str) -> bool {
        self.all || self.whole.contains(object)
    }
}

/// Goes through a source.
struct Reader<'a> {
    /// The hooks' names for their facts.
    facts: Vec<&'a str>,
    reads: Reads,
}

impl Reader<'_> {
    /// Texts within a list or map of constants are no names by themselves: taking one from there is computing a name.
    fn see(&mut self, above: &[ASTNode], expr: &Expr) {
        match expr {
            Expr::Property(property, _) => self.see_property(above.last(), expr, &property.2),
            Expr::StringConstant(text, _) => self.see_text(text),
            Expr::Variable(..) => self.reads.all |= is_written_out(above) && self.is_facts(expr),
            Expr::Index(chain, flags, _) if !is_constant(&chain.lhs) => self.see_name(Some(next(chain, *flags))),
            Expr::FnCall(call, _) => self.see_call(call, 1),
            Expr::MethodCall(call, _) => match receiver(above, expr) {
                Some(constant) if is_constant(constant) => {}
                Some(it) if self.is_facts(it) && WHOLE_OR_OTHER.contains(&call.name.as_str()) => self.reads.all = true,
                _ => self.see_call(call, 0),
            },
            _ => {}
        }
    }

    fn see_property(&mut self, parent: Option<&ASTNode>, property: &Expr, name: &ImmutableString) {
        self.reads.names.insert(name.clone());
        let Some(object) = object_of(name) else { return };
        let by_name = match parent {
            Some(ASTNode::Expr(Expr::Dot(chain, flags, _) | Expr::Index(chain, flags, _)))
                if std::ptr::eq(&raw const chain.lhs, property) =>
            {
                match next(chain, *flags) {
                    Expr::Property(..) => true,
                    Expr::MethodCall(call, _) => {
                        matches!(call.name.as_str(), "get" | "contains")
                            && call.args.first().is_some_and(|it| text_of(it).is_some())
                    }
                    index => text_of(index).is_some(),
                }
            }
            _ => false,
        };
        if !by_name {
            self.reads.whole.insert(object);
        }
    }

    fn see_text(&mut self, text: &ImmutableString) {
        self.reads.names.insert(text.clone());
        self.reads.whole.extend(object_of(text));
        // A function may be called by its name as a text.
        self.reads.all |= WHOLE.contains(&text.as_str()) || BY_NAME.contains(&text.as_str());
    }

    /// `at` is the position of the argument after the map.
    fn see_call(&mut self, call: &FnCallExpr, at: usize) {
        let may_be_whole = WHOLE_OR_OTHER.contains(&call.name.as_str()) && call.args.iter().any(|it| self.is_facts(it));
        if may_be_whole || WHOLE.contains(&call.name.as_str()) {
            self.reads.all = true;
        } else if BY_NAME.contains(&call.name.as_str()) {
            self.see_name(call.args.get(at));
        }
    }

    /// Whether it is a hook's map of facts, by its name.
    fn is_facts(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Variable(variable, ..) if variable.2.is_empty() && self.facts.contains(&variable.1.as_str()))
    }

    /// A member with a computed name may be any.
    fn see_name(&mut self, name: Option<&Expr>) {
        self.reads.all |= !matches!(name, None | Some(Expr::StringConstant(..) | Expr::IntegerConstant(..)));
    }
}

fn object_of(name: &str) -> Option<&'static str> {
    OBJECTS.iter().find(|it| **it == name).copied()
}

fn text_of(expr: &Expr) -> Option<&ImmutableString> {
    if let Expr::StringConstant(text, _) = expr { Some(text) } else { None }
}

/// Whether it is a constant of the script's own: no fact is one.
fn is_constant(expr: &Expr) -> bool {
    matches!(expr, Expr::Variable(variable, ..) if !variable.2.is_empty())
}

/// Whether a value becomes part of a text, as `${value}` does.
fn is_written_out(above: &[ASTNode]) -> bool {
    let is_block = |node: &&ASTNode| matches!(node, ASTNode::Stmt(_) | ASTNode::Expr(Expr::Stmt(_)));
    let outside = above.iter().rev().find(|node| !is_block(node));
    matches!(outside, Some(ASTNode::Expr(Expr::InterpolatedString(..))))
}

/// Returns the receiver of a method.
fn receiver<'a>(above: &[ASTNode<'a>], method: &Expr) -> Option<&'a Expr> {
    let mut chains = above.iter().rev().map_while(|node| match node {
        ASTNode::Expr(Expr::Dot(chain, ..) | Expr::Index(chain, ..)) => Some(&chain.lhs),
        _ => None,
    });
    // In the middle of a chain it is the left side of the next part.
    chains.find(|it| !std::ptr::eq(*it, method))
}

/// Returns the part that is asked of the left side of a chain.
fn next(chain: &BinaryExpr, flags: ASTFlags) -> &Expr {
    match &chain.rhs {
        Expr::Dot(rest, ..) | Expr::Index(rest, ..) if !flags.contains(ASTFlags::BREAK) => &rest.lhs,
        rest => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Library, build_engine};
    use super::*;

    fn reads(body: &str) -> Reads {
        let source =
            format!("const TABLE = #{{a: 1}};\nfn route(message, candidates) {{ let name = `${{1}}`; {body} }}");
        Reads::of(&build_engine(Library::default()).compile(source).unwrap())
    }

    #[test]
    fn what_is_named_is_read_and_nothing_else() {
        let named = reads("if message.country == \"SE\" { candidates.filter(|it| it.cost < 2) } else { candidates }");
        for name in ["country", "cost", "connection", "score", "SE"] {
            assert!(named.has(name), "{name}");
        }
        for name in ["to", "id", "latency_ms", "contact", "message"] {
            assert!(!named.has(name), "{name}");
        }
        assert!(reads("candidates.sorted_by(\"latency_ms\")").has("latency_ms"));
        assert!(reads("message[\"to\"]").has("to"));
        assert!(reads("`${message.to}`").has("to"));
        assert!(reads("switch message.channel { \"sms\" => message.to, _ => () }").has("to"));
    }

    #[test]
    fn of_an_object_only_what_is_named() {
        for body in [
            "message.contact.segment",
            "message.contact?.segment ?? 1",
            "message.contact[\"segment\"]",
            "message.contact.get(\"segment\")",
            "message.contact.segment.len()",
        ] {
            let reads = reads(body);
            assert!(reads.has("contact") && reads.has("segment") && !reads.has_all_of("contact"), "{body}");
        }
        for body in [
            "message.contact",
            "let it = message.contact; it.segment",
            "#{attributes: message.contact}",
            "message.contact.len()",
            "message.contact + #{a: 1}",
            "\"x\" in message.contact",
            "message[\"contact\"].segment",
        ] {
            assert!(reads(body).has_all_of("contact"), "{body}");
            assert!(!reads(body).has_all_of("attributes"), "{body}");
        }
    }

    #[test]
    fn a_name_that_is_made_up_may_be_any() {
        for body in [
            "message[name]",
            "message[\"co\" + \"untry\"]",
            "message.contact[name]",
            "message.contact.get(name)",
            "get(message, name)",
            "candidates.sorted_by(name)",
            "message.keys()",
            "message.to_json()",
            "print(message)",
            "Fn(\"values\").call(message)",
            "candidates[0][name]",
            "candidates.pluck(name)",
            "name in message",
            "message.contains(name)",
            "message == #{}",
            "message.len()",
            "message.filter(|it| true).len() + 1",
            "`of ${message}`",
        ] {
            assert!(reads(body).has("anything"), "{body}");
        }
        for body in
            ["global::TABLE[name]", "global::TABLE.get(name)", "candidates[0].cost", "candidates.get(1)", "name in [1]"]
        {
            assert!(!reads(body).has("anything"), "{body}");
        }
    }
}
