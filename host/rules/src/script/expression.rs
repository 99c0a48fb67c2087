//! Expressions of `custom` rules: one condition on a message, without statements.

use std::sync::{Arc, LazyLock};

use rhai::{AST, Dynamic, Engine, Scope};

use super::{
    Age, Given, Modules, ScriptError, ScriptFault,
    answer::read_condition,
    compile,
    facts::{FactField, MESSAGE, MessageFacts},
    limits, run,
    shared::kept,
};

static MODULES: LazyLock<Modules> = LazyLock::new(Modules::none);

/// The names that an expression may use; each is the field of the message.
pub const VARIABLES: &[&str] = &["message", "channel", "to", "priority", "country", "attributes", "contact", "context"];

/// A compiled condition.
#[derive(Clone)]
pub struct Expression {
    name: Arc<str>,
    engine: Arc<Engine>,
    tree: Arc<AST>,
    /// Whether its closures share the variables.
    shares: bool,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.name).finish()
    }
}

/// A message as expressions see it: made once for all the expressions that are asked of it.
pub struct Seen {
    values: Scope<'static>,
    /// The same for expressions whose closures share variables, once there is one: a run ends by emptying its shared
    /// variables, which the next one would otherwise see.
    shared: Option<Scope<'static>>,
}

impl Seen {
    /// Returns the facts that expressions see of a message; a fault if the message is larger than they may see.
    pub fn of(message: &MessageFacts) -> Result<Self, ScriptFault> {
        let broken = |error| super::fault_of("expression", "facts", &error);
        let message = rhai::serde::to_dynamic(message).map_err(|error| broken(*error))?;
        let member = |name: &str| message.as_map_ref().ok().and_then(|it| it.get(name).cloned());
        let mut scope = Scope::new();
        for name in VARIABLES {
            let value = if *name == "message" { message.clone() } else { member(name).unwrap_or(Dynamic::UNIT) };
            scope.push_constant_dynamic(*name, value);
        }
        Ok(Self { values: scope, shared: None })
    }

    fn shared(&mut self) -> &mut Scope<'static> {
        self.shared.get_or_insert_with(|| {
            let mut scope = Scope::new();
            for name in VARIABLES {
                scope.push_constant_dynamic(*name, self.values.get(name).cloned().map_or(Dynamic::UNIT, kept));
            }
            scope
        })
    }
}

impl Expression {
    /// Compiles one: `attributes.amount > 100 && country in ["SE", "NO"]`.
    pub fn compile(name: &str, source: &str, age: Age) -> Result<Self, ScriptError> {
        let mut scope = Scope::new();
        for name in VARIABLES {
            scope.push_constant_dynamic(*name, Dynamic::UNIT);
        }
        let tree = compile::expression(MODULES.engine(), &scope, name, source)?;
        MODULES.check(name, &tree, age)?;
        let shares = MODULES.watches(&tree);
        Ok(Self { name: name.into(), engine: Arc::clone(MODULES.engine_for(&tree)), tree: Arc::new(tree), shares })
    }

    /// Whether it holds. It must come to a boolean.
    pub fn holds(&self, seen: &mut Seen, given: &Given) -> Result<bool, ScriptFault> {
        let work = || {
            let scope = if self.shares { seen.shared() } else { &mut seen.values };
            self.engine.eval_ast_with_scope(scope, &self.tree)
        };
        run(&self.name, "expression", limits::TIME, given, work, read_condition)
    }
}

/// Returns the description of each of [`VARIABLES`].
pub(crate) fn variables() -> Vec<FactField> {
    let of_message = MESSAGE.iter().filter(|(name, ..)| VARIABLES.contains(name)).copied();
    std::iter::once(("message", "map", "the whole message, as `admit` gets it")).chain(of_message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::ScriptFaultKind;

    fn seen() -> Seen {
        let facts = r#"{"channel": "sms", "to": "+46701234567", "country": "SE",
            "attributes": {"amount": 120, "tags": ["vip"]}, "contact": {"segment": "gold"}}"#;
        Seen::of(&serde_json::from_str(facts).unwrap()).unwrap()
    }

    fn compiled(source: &str) -> Result<Expression, ScriptError> {
        Expression::compile("rule", source, Age::New)
    }

    #[test]
    fn an_expression_is_one_condition() {
        let holds = |source: &str| compiled(source).unwrap().holds(&mut seen(), &Given::default());
        for (source, expected) in [
            ("attributes.amount > 100", true),
            ("country in [\"SE\", \"NO\"] && contact.segment == \"gold\"", true),
            ("attributes.tags.contains(\"vip\") && channel != \"sms\"", false),
            ("phone_country(to) == country", true),
            ("attributes.missing == ()", true),
            ("attributes.tags.some(|it| it == \"vip\")", true),
            ("percent(to, \"experiment\") < 100.0", true),
        ] {
            assert_eq!(holds(source), Ok(expected), "{source}");
        }
        let fault = holds("attributes.amount").expect_err("a number");
        assert_eq!(fault.kind, ScriptFaultKind::Answer(String::new()));
    }

    #[test]
    fn statements_and_unknown_names_are_refused() {
        for source in ["let x = 1; true", "while true {}", "amount > 1", "true; false", "", "import \"x\" as x"] {
            assert!(compiled(source).is_err(), "{source}");
        }
        let error = compiled("true &&\n  amout > 1").unwrap_err();
        assert_eq!(error.line, Some(2), "{error}");
    }

    #[test]
    fn one_expression_changes_nothing_for_the_next() {
        let mut seen = seen();
        let changes = compiled("attributes.clear() == ()").unwrap();
        assert!(changes.holds(&mut seen, &Given::default()).is_err(), "what it sees is constant");
        let reads = compiled("attributes.amount == 120").unwrap();
        assert_eq!(reads.holds(&mut seen, &Given::default()), Ok(true));
        // Closures share the variables that they use, for one run.
        let clears = compiled("[1].some(|it| attributes.clear() == ())").unwrap();
        assert!(clears.holds(&mut seen, &Given::default()).is_err(), "it is constant for closures too");
        let shares = compiled("[120].some(|it| it == attributes.amount)").unwrap();
        for expression in [&shares, &shares, &reads] {
            assert_eq!(expression.holds(&mut seen, &Given::default()), Ok(true));
        }
    }
}
