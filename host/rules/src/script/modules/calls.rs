//! Checks that a source's calls exist, with their numbers of arguments, and can be called so: a run would find out
//! late, in a branch that is seldom taken.
//!
//! Names that a source makes during a run, a function's name as a text or a function in a variable, are not examined.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock},
};

use rhai::{AST, ASTFlags, ASTNode, Engine, Expr, FnCallExpr, FnPtr, ImmutableString, Module, Position, Stmt};

use super::{
    super::{ScriptError, column_of, engine, line_of, vocabulary},
    Library,
    names::Names,
};
use angarium_domain::timezone;

/// A function that the language calls by itself.
const HOLDS_VARIABLES: &str = "curry";

/// Functions of the interpreter itself, with the numbers of their arguments. `call` takes any number.
const OF_INTERPRETER: &[(&str, &[usize])] =
    &[("Fn", &[1]), ("is_shared", &[1]), ("type_of", &[1]), ("is_def_var", &[1]), ("is_def_fn", &[2, 3])];

/// Functions with the places of their arguments that are a zone, and times of day.
const OF_TIME: &[(&str, usize, &[usize])] = &[
    ("local_time", 1, &[]),
    ("is_between", 1, &[2, 3]),
    ("next_time", 1, &[2]),
    ("next_business_time", 1, &[2]),
    ("is_business_time", 1, &[2, 3]),
];

/// The functions of every script: each name with the numbers of its parameters, and whether one of these is a function.
type KnownFunctions = HashMap<String, BTreeMap<usize, bool>>;

static KNOWN: LazyLock<KnownFunctions> = LazyLock::new(|| {
    let all = engine::build(Library::default()).collect_fn_metadata(
        None,
        |it| {
            let takes_function = it.metadata.param_types.contains(&TypeId::of::<FnPtr>());
            Some((it.metadata.name.to_string(), it.metadata.num_params, takes_function))
        },
        true,
    );
    let mut known = KnownFunctions::new();
    for (name, parameters, takes_function) in all {
        *known.entry(name).or_default().entry(parameters).or_default() |= takes_function;
    }
    for (name, parameters) in OF_INTERPRETER {
        known.entry((*name).to_owned()).or_default().extend(parameters.iter().map(|it| (*it, false)));
    }
    known
});

/// Refuses a tree that calls a function which the module that it imports does not have.
pub(super) fn check_modules(engine: &Engine, name: &str, tree: &AST) -> Result<(), ScriptError> {
    let mut imported: BTreeMap<ImmutableString, Vec<Arc<Module>>> = BTreeMap::new();
    tree.walk(&mut |path| {
        if let Some(ASTNode::Stmt(Stmt::Import(import, _))) = path.last()
            && let (Expr::StringConstant(from, position), alias) = &**import
            && let Ok(module) = engine.module_resolver().resolve(engine, None, from, *position)
        {
            imported.entry(alias.name.clone()).or_default().push(module);
        }
        true
    });
    first_fault(name, tree, |path| {
        let (call, position, _) = call_of(path)?;
        let (first, within) = call.namespace.path.split_first()?;
        let modules = imported.get(&first.name)?;
        let has = |module: &Arc<Module>| {
            let mut innermost = Some(&**module);
            for inner in within {
                innermost = innermost.and_then(|it| it.get_sub_module(&inner.name));
            }
            innermost.is_some_and(|it| it.get_script_fn(&call.name, call.args.len()).is_some())
        };
        let names: Vec<_> = call.namespace.path.iter().map(|it| it.name.as_str()).chain([call.name.as_str()]).collect();
        (!modules.iter().any(has)).then(|| (position, does_not_exist(&names.join("::"), call.args.len())))
    })
}

/// Refuses a tree that calls a function which does not exist, or in a way that cannot end well. `names` are its own and
/// those of all its imports, the tree's first.
pub(super) fn check(name: &str, tree: &AST, names: &[&Names]) -> Result<(), ScriptError> {
    let source = Source::of(tree, names);
    first_fault(name, tree, |path| {
        let (call, position, is_method) = call_of(path)?;
        if !call.namespace.is_empty() || call.op_token.is_some() || !is_name(&call.name) {
            return None;
        }
        let missing = || source.missing(call, is_method).map(|reason| (position, reason));
        let used = || source.uses_what_it_is_called_on(path, call).map(|reason| (position, reason));
        missing().or_else(used).or_else(|| source.wrong_time(call, usize::from(is_method)))
    })
    .and_then(|()| {
        first_fault(name, tree, |path| match path.last() {
            Some(ASTNode::Expr(Expr::Array(members, _))) => wrong_zone_among(members.iter()),
            Some(ASTNode::Expr(Expr::Map(members, _))) => wrong_zone_among(members.0.iter().map(|(_, member)| member)),
            _ => None,
        })
    })
}

/// The first fault that is found, as the error of a source of this name.
fn first_fault(
    name: &str,
    tree: &AST,
    mut find: impl FnMut(&[ASTNode]) -> Option<(Position, String)>,
) -> Result<(), ScriptError> {
    let mut found = None;
    tree.walk(&mut |path| {
        found = find(path);
        found.is_none()
    });
    found.map_or(Ok(()), |(position, reason)| {
        Err(ScriptError { script: name.to_owned(), line: line_of(position), column: column_of(position), reason })
    })
}

/// Returns the call at the end of a path, and whether it is a method's.
fn call_of<'a>(path: &[ASTNode<'a>]) -> Option<(&'a FnCallExpr, Position, bool)> {
    match path.last()? {
        ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at)) => Some((call, *at, false)),
        ASTNode::Expr(Expr::MethodCall(call, at)) => Some((call, *at, true)),
        _ => None,
    }
}

/// Operators are called by their signs.
fn is_name(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The known properties of a whole source.
struct Source<'a> {
    names: &'a [&'a Names],
    /// Texts at its top, by the constant's name.
    constants: HashMap<ImmutableString, ImmutableString>,
    /// Variables and parameters of functions.
    variables: BTreeSet<ImmutableString>,
}

impl<'a> Source<'a> {
    fn of(tree: &AST, names: &'a [&'a Names]) -> Self {
        let constants = tree.statements().iter().filter_map(|statement| match statement {
            Stmt::Var(variable, ..) => match &variable.1 {
                Expr::StringConstant(text, _) => Some((variable.0.name.clone(), text.clone())),
                _ => None,
            },
            _ => None,
        });
        let parameters = tree.iter_functions().flat_map(|it| it.params).map(ImmutableString::from);
        let (constants, mut variables) = (constants.collect(), parameters.collect::<BTreeSet<_>>());
        tree.walk(&mut |path| {
            if let Some(ASTNode::Stmt(Stmt::Var(variable, ..))) = path.last() {
                variables.insert(variable.0.name.clone());
            }
            true
        });
        Self { names, constants, variables }
    }

    fn defines(&self, name: &str, parameters: usize) -> bool {
        self.names.first().is_some_and(|it| it.defines(name, parameters))
    }

    /// Returns the reason for which a call leads nowhere.
    fn missing(&self, call: &FnCallExpr, is_method: bool) -> Option<String> {
        let (name, given) = (call.name.as_str(), call.args.len());
        let parameters = given + usize::from(is_method);
        let known = KNOWN.get(name);
        let exists = self.defines(name, given)
            || known.is_some_and(|it| it.contains_key(&parameters))
            || (name == "call" && parameters > 0)
            || name == HOLDS_VARIABLES
            // A map may have a function as its member.
            || (is_method && self.names.iter().any(|it| it.has_member(name)));
        if exists {
            return None;
        }
        if is_method && self.defines(name, parameters) {
            return Some(format!(
                "the script's own function `{name}` must be called as `{name}(value, …)`: after a dot it has the value \
                 as `this`"
            ));
        }
        if !is_method && self.variables.contains(name) {
            return Some(format!("the function in the variable `{name}` must be called as `{name}.call(…)`"));
        }
        let own = self.names.first().into_iter().flat_map(|it| it.parameters_of(name));
        let numbers: BTreeSet<_> = known.into_iter().flat_map(BTreeMap::keys).copied().chain(own).collect();
        if numbers.is_empty() {
            return Some(self.with_suggestion(does_not_exist(name, given), name));
        }
        let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
        let with_value = if is_method { ", with the value before the dot" } else { "" };
        Some(format!(
            "the function `{name}` must have {} arguments (got {parameters}{with_value})",
            numbers.join(" or ")
        ))
    }

    fn with_suggestion(&self, reason: String, name: &str) -> String {
        let own = self.names.first().into_iter().flat_map(|it| it.functions());
        let all = KNOWN.keys().map(String::as_str).filter(|it| is_name(it)).chain(own);
        let close =
            all.map(|it| (strsim::damerau_levenshtein(name, it), it)).filter(|(far, _)| *far * 3 <= name.len()).min();
        match close {
            Some((_, close)) => format!("{reason}: is `{close}` meant?"),
            None => reason,
        }
    }

    /// Returns the reason for which a function cannot be passed to this method: it uses the variable on whose part the
    /// method is called, and the interpreter holds that variable meanwhile.
    fn uses_what_it_is_called_on(&self, path: &[ASTNode], call: &FnCallExpr) -> Option<String> {
        let (method, above) = path.split_last()?;
        let ASTNode::Expr(method @ Expr::MethodCall(..)) = method else { return None };
        let Some(Expr::Variable(variable, ..)) = root_of(above, method) else { return None };
        let asks = KNOWN.get(call.name.as_str()).and_then(|it| it.get(&(call.args.len() + 1))).is_some_and(|it| *it);
        let root = &variable.1;
        let shares = |argument: &Expr| match argument {
            Expr::Stmt(block) => block.statements().iter().any(
                |statement| matches!(statement, Stmt::Share(shared) if shared.iter().any(|(it, _)| it.name == *root)),
            ),
            _ => false,
        };
        (asks && call.args.iter().any(shares)).then(|| {
            format!(
                "`{0}` must be called as `{0}(list, function)`: after a dot its function is not allowed to use `{root}`",
                call.name
            )
        })
    }

    /// A zone or a time of day that is written out, and does not exist.
    fn wrong_time(&self, call: &FnCallExpr, before: usize) -> Option<(Position, String)> {
        let (_, zone, clocks) = OF_TIME.iter().find(|(name, ..)| *name == call.name)?;
        if self.defines(&call.name, call.args.len()) {
            return None;
        }
        let argument = |place: usize| place.checked_sub(before).and_then(|place| call.args.get(place));
        let wrong = |place: usize, fault: fn(&str) -> Option<String>| {
            let argument = argument(place)?;
            let reason = self.texts_of(argument).iter().find_map(|text| fault(text))?;
            Some((argument.start_position(), reason))
        };
        let clock = || clocks.iter().find_map(|place| wrong(*place, vocabulary::clock_fault));
        wrong(*zone, vocabulary::zone_fault).or_else(clock)
    }

    /// The texts that an argument may be, as far as they are written out.
    fn texts_of(&self, argument: &Expr) -> Vec<ImmutableString> {
        match argument {
            Expr::StringConstant(text, _) => vec![text.clone()],
            Expr::Variable(variable, ..) if variable.2.path.first().is_some_and(|it| it.name == "global") => {
                self.constants.get(&variable.1).cloned().into_iter().collect()
            }
            Expr::Coalesce(alternatives, _) => alternatives.iter().flat_map(|it| self.texts_of(it)).collect(),
            _ => Vec::new(),
        }
    }
}

fn does_not_exist(name: &str, arguments: usize) -> String {
    let plural = if arguments == 1 { "" } else { "s" };
    format!("the function `{name}` of {arguments} argument{plural} does not exist")
}

/// A list or table that has zones has nothing else of their form.
fn wrong_zone_among<'a>(members: impl Iterator<Item = &'a Expr>) -> Option<(Position, String)> {
    let zones: Vec<_> = members
        .filter_map(|member| match member {
            Expr::StringConstant(text, at) if is_like_zone(text) => Some((*at, text, timezone::exists(text))),
            _ => None,
        })
        .collect();
    let has_zones = zones.iter().any(|(.., exists)| *exists);
    let (at, text, _) = zones.iter().find(|(.., exists)| has_zones && !exists)?;
    Some((*at, vocabulary::zone_fault(text)?))
}

/// `Area/Location`.
fn is_like_zone(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_/+-".contains(c);
    text.starts_with(|c: char| c.is_ascii_uppercase()) && text.contains('/') && text.chars().all(plain)
}

/// Returns the beginning of the chain that a method is part of.
fn root_of<'a>(above: &[ASTNode<'a>], method: &Expr) -> Option<&'a Expr> {
    let (mut root, mut below) = (None, method);
    for node in above.iter().rev() {
        let (chain, whole, ends) = match node {
            ASTNode::Expr(whole @ Expr::Dot(chain, ..)) => (chain, *whole, false),
            ASTNode::Expr(whole @ Expr::Index(chain, flags, _)) => (chain, *whole, flags.contains(ASTFlags::BREAK)),
            _ => break,
        };
        if std::ptr::eq(&raw const chain.lhs, below) {
            // The method itself begins the rest of a chain; anything else on the left is a value of its own.
            if root.is_some() {
                break;
            }
        } else if ends {
            break;
        } else {
            root = Some(&chain.lhs);
        }
        below = whole;
    }
    root
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::{Age, Expression, Given, Modules, Script, ScriptFaultKind, facts::MessageFacts};

    const HELPERS: &str = "fn helper(x) { x } fn twice() { this * 2 } fn check(a, b) { a == b }\n";

    fn source(body: &str) -> String {
        format!("{HELPERS}const ZONE = \"Europe/Stokholm\";\nfn admit(message) {{\n{body}\n}}")
    }

    fn reason(body: &str) -> String {
        let refused = Script::compile("test.rhai", &source(body), &Modules::none());
        let error = refused.map(drop).expect_err(body);
        assert_eq!(error.line, Some(4), "{body}: {error}");
        error.reason
    }

    /// Whether the body returns `true`.
    fn holds(body: &str, message: &MessageFacts) -> bool {
        let admit = "fn admit(message) { if answers(message) { refuse(\"yes\") } else { allow() } }";
        let source = format!("{HELPERS} fn answers(message) {{ {body} }} {admit}");
        let script = Script::compile("test.rhai", &source, &Modules::none());
        let script = script.unwrap_or_else(|error| panic!("{body}: {error}")).allowing(Duration::from_secs(5));
        let answer = script.admit(message, &Given::default()).unwrap_or_else(|fault| panic!("{body}: {fault}"));
        answer.verdict != super::super::super::AdmitVerdict::Allow
    }

    fn message() -> MessageFacts {
        let attributes = serde_json::from_str(r#"{"tags": ["a", "b"], "wanted": "b"}"#).unwrap();
        MessageFacts { channel: "sms".into(), to: "b".into(), attributes, ..MessageFacts::default() }
    }

    #[test]
    fn a_function_that_does_not_exist_is_refused_wherever_it_is_called() {
        for (body, expected) in [
            (
                "mail_domian(message.to)",
                "the function `mail_domian` of 1 argument does not exist: is `mail_domain` meant?",
            ),
            (
                "message.to.mail_domian()",
                "the function `mail_domian` of 0 arguments does not exist: is `mail_domain` meant?",
            ),
            ("heplers(1)", "the function `heplers` of 1 argument does not exist: is `helper` meant?"),
            ("if false { nothing_like_it(1, 2) }", "the function `nothing_like_it` of 2 arguments does not exist"),
            ("[1].map(|x| [2].map(|y| nowhere(x, y)))", "the function `nowhere` of 2 arguments does not exist"),
            ("let f = |x| nowhere(x); f.call(1)", "the function `nowhere` of 1 argument does not exist"),
            ("`of ${nowhere(1)}`", "the function `nowhere` of 1 argument does not exist"),
            (
                "switch message.to { \"a\" => nowhere(), _ => 1 }",
                "the function `nowhere` of 0 arguments does not exist",
            ),
            ("message.contact.get(\"a\").nowhere()", "the function `nowhere` of 0 arguments does not exist"),
            ("let x = 1; x += nowhere();", "the function `nowhere` of 0 arguments does not exist"),
            ("for x in nowhere() { }", "the function `nowhere` of 0 arguments does not exist"),
            ("try { nowhere() } catch { }", "the function `nowhere` of 0 arguments does not exist"),
            ("sleep(1)", "the function `sleep` of 1 argument does not exist"),
        ] {
            assert_eq!(reason(body), expected, "{body}");
        }
    }

    #[test]
    fn one_that_exists_with_other_arguments_says_how_many() {
        for (body, expected) in [
            ("next_time(now(), \"UTC\")", "the function `next_time` must have 3 arguments (got 2)"),
            (
                "now().next_time(\"UTC\")",
                "the function `next_time` must have 3 arguments (got 2, with the value before the dot)",
            ),
            ("helper(1, 2)", "the function `helper` must have 1 arguments (got 2)"),
            ("hold_until()", "the function `hold_until` must have 1 or 2 arguments (got 0)"),
            (
                "1.check(1)",
                "the script's own function `check` must be called as `check(value, …)`: after a dot it has the value as `this`",
            ),
            ("let f = |x| x; f(1)", "the function in the variable `f` must be called as `f.call(…)`"),
        ] {
            assert_eq!(reason(body), expected, "{body}");
        }
    }

    #[test]
    fn what_exists_is_not_refused() {
        for body in [
            "let f = |x| x + 1; f.call(1) == 2 && call(f, 1) == 2",
            "Fn(\"helper\").call(1) == 1 && call(Fn(\"helper\"), 1) == 1",
            "2.twice() == 4 && helper(1) == 1 && check(1, 1)",
            "[1].map(helper) == [1] && helper.call(1) == 1",
            "let map = #{greet: |x| x + 1}; map.greet(1) == 2",
            "let map = #{}; map.set = |x| x + 1; map.set(1) == 2",
            "let map = #{}; map[\"put\"] = |x| x + 1; map.put(1) == 2",
            "let map = #{inner: #{}}; map.inner.deep = |x| x + 1; map.inner.deep(1) == 2",
            "let n = 1; let f = |x| x + n; f.call(1) == 2 && is_shared(n)",
            "type_of(1) == \"i64\" && 1.type_of() == \"i64\" && is_def_fn(\"helper\", 1) && !is_def_var(\"none\")",
            "print(1); debug(#{}); true",
            "1 in [1] && !(1 in [2]) && -1 < 0 && !false && 2 ** 3 == 8 && 7 % 4 == 3 && 1 << 2 == 4",
            "let sum = 0; for x in 1..=3 { sum += x; } for (x, n) in [1, 2] { sum += n; } sum == 7",
            "[3, 1].sort() == () && [1, 2].reduce(|sum, x| sum + x, 0) == 3 && [1, 2].map(|x| x.max(2)).len() == 2",
            "[1, 2].filter(Fn(\"helper\")).is_empty()",
            "\"abc\".to_upper() == \"ABC\" && \"abc\"[0] == 'a' && \"abc\"[0..2] == \"ab\" && \"abc\".len == 3",
            "(message.contact?.segment ?? \"none\").len() == 4 && message.contact.keys().len() == 0",
            "#{a: 1}.contains(\"a\") && #{a: 1}.get(\"b\") == () && (#{a: 1} + #{b: 2}).values().len() == 2",
            "later((), ()) == () && same_text(\"Straße\", \"STRASSE\") && is_one_of(\"É\", [1, \"e\u{301}\"])",
            // As the pages say: values of different kinds are not equal, and neither is less.
            "!(() < 100) && !(() > 100) && !(\"129.50\" > 100) && () != 0 && number(\"129.50\") > 100 && number(()) == ()",
            "let caught = (); try { throw \"x\"; } catch (error) { caught = error; } caught == \"x\"",
        ] {
            assert!(holds(body, &message()), "{body}");
        }
    }

    #[test]
    fn modules_and_expressions_are_held_to_the_same() {
        let modules = |source: &str| Modules::compile(&[("tools".to_owned(), source.to_owned())].into());
        let refused = modules("fn is_dear(cost) { cost > most(1) }").map(drop).expect_err("`most` is nowhere");
        assert!(refused.to_string().starts_with("tools:1:27: the function `most` of 1 argument"), "{refused}");
        let tools = modules("fn make() { #{greet: |x| x} } fn is_dear(x) { x > 1 }").unwrap();
        let of = |body: &str| {
            let source = format!("import \"tools\" as tools;\nfn admit(message) {{ {body} }}");
            Script::compile("test.rhai", &source, &tools).map(drop).map_err(|error| error.reason)
        };
        assert_eq!(of("tools::is_dear(2); tools::make().greet(1); ()"), Ok(()));
        assert_eq!(of("is_dear(2)"), Err("the function `is_dear` of 1 argument does not exist".to_owned()));
        assert_eq!(
            of("tools::is_dear()"),
            Err("the function `tools::is_dear` of 0 arguments does not exist".to_owned())
        );
        assert_eq!(
            of("[1].map(|x| tools::daer(x))"),
            Err("the function `tools::daer` of 1 argument does not exist".to_owned())
        );
        let expression = |source: &str, age| Expression::compile("expression", source, age).map(drop);
        let refused = expression("true ||\n nowhere(to)", Age::New).expect_err("it is nowhere");
        assert_eq!((refused.line, refused.column), (Some(2), Some(2)));
        assert_eq!(expression("true ||\n nowhere(to)", Age::Stored), Ok(()), "one in service goes on");
    }

    #[test]
    fn a_script_in_service_goes_on_although_it_calls_what_does_not_exist() {
        let source = source("if message.channel == \"push\" { nowhere() } else { refuse(\"no\") }");
        assert!(Script::compile("test.rhai", &source, &Modules::none()).is_err());
        let script = Script::stored("test.rhai", &source, &Modules::none()).unwrap().allowing(Duration::from_secs(5));
        assert!(script.admit(&message(), &Given::default()).is_ok());
    }

    #[test]
    fn a_function_that_uses_what_it_is_asked_of_is_refused_with_the_way_out() {
        let way_out =
            "`some` must be called as `some(list, function)`: after a dot its function is not allowed to use `message`";
        for body in [
            "message.attributes.tags.some(|it| it == message.attributes.wanted)",
            "message[\"attributes\"].tags.some(|it| it == message.to)",
            "message.attributes.tags.filter(|it| true).some(|it| it == message.to)",
        ] {
            assert_eq!(reason(body), way_out, "{body}");
            let script = Script::stored("test.rhai", &source(body), &Modules::none()).unwrap();
            let fault = script.allowing(Duration::from_secs(5)).admit(&message(), &Given::default()).unwrap_err();
            assert_eq!(fault.kind, ScriptFaultKind::Thrown, "{body}: {fault}");
            assert!(fault.reason.contains("as in `some(list, function)`"), "{body}: {fault}");
        }
        let list = "let list = [1]; list.map(|it| it + list.len())";
        assert!(reason(list).starts_with("`map` must be called as `map(list, function)`"));
        for body in [
            "some(message.attributes.tags, |it| it == message.attributes.wanted)",
            "let tags = message.attributes.tags; tags.some(|it| it == message.attributes.wanted)",
            "let wanted = message.attributes.wanted; message.attributes.tags.some(|it| it == wanted)",
            "[\"b\"].some(|it| it == message.to)",
            "let list = [1]; map(list, |it| it + list.len()) == [2]",
            "let list = []; let n = 1; list.push(|| n); list.len() == 1",
            "let tags = []; for name in message.attributes.tags { if !tags.some(|it| it == name) { tags.push(name); } } tags == [\"a\", \"b\"]",
        ] {
            assert!(holds(body, &message()), "{body}");
        }
        let refused = Expression::compile("expression", "attributes.tags.some(|it| it == attributes.wanted)", Age::New);
        assert!(refused.is_err());
        Expression::compile("expression", "some(attributes.tags, |it| it == attributes.wanted)", Age::New).unwrap();
    }

    #[test]
    fn zones_and_times_of_day_that_are_written_out_must_exist() {
        for (body, expected) in [
            (
                "is_between(now(), \"Europe/Stokholm\", \"08:00\", \"17:00\")",
                "the time zone `Europe/Stokholm` does not exist",
            ),
            ("now().local_time(\"Mars\")", "the time zone `Mars` does not exist"),
            ("next_time(now(), global::ZONE, \"08:00\")", "the time zone `Europe/Stokholm` does not exist"),
            (
                "next_time(now(), message.timezone ?? global::ZONE, \"08:00\")",
                "the time zone `Europe/Stokholm` does not exist",
            ),
            ("next_time(now(), \"UTC\", \"25:00\")", "a time of day must be written as `08:30` (got `25:00`)"),
            ("now().is_business_time(\"UTC\", \"9\", \"17:00\")", "a time of day must be written as `08:30` (got `9`)"),
            ("#{SE: \"Europe/Stockholm\", NO: \"Europe/Olso\"}", "the time zone `Europe/Olso` does not exist"),
            ("[\"UTC\", \"America/New_York\", \"America/NewYork\"]", "the time zone `America/NewYork` does not exist"),
        ] {
            assert!(reason(body).starts_with(expected), "{body}: {}", reason(body));
        }
        for body in ["!is_zone(\"Middle/Earth\")", "[\"Europe/Nordics\"].len() == 1", "is_zone(\"Europe/Paris\")"] {
            assert!(holds(body, &message()), "{body}");
        }
        let script = Script::compile("test.rhai", &source("local_time(now(), message.to)"), &Modules::none()).unwrap();
        let fault = script.allowing(Duration::from_secs(5)).admit(&message(), &Given::default()).unwrap_err();
        assert!(fault.reason.contains("the time zone `b` does not exist"), "{fault}");
    }
}
