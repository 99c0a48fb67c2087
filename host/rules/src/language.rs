//! Rhai as the language of custom conditions.

use jiff::Timestamp;

use super::{
    allowance,
    expression::{ExpressionFault, ExpressionId, Expressions, Memo},
    script::{Age, Expression, Given, ScriptFault, Seen, facts::MessageFacts},
};
use angarium_domain::rule_input::RuleInput;

/// The compiled expressions of one rule set. `chance()` does not change in them: the same message at the same time is
/// always decided in the same way.
#[derive(Debug, Default)]
pub struct Language {
    expressions: Vec<Expression>,
    age: Age,
}

impl Language {
    /// For rules that are in service.
    #[must_use]
    pub fn stored() -> Self {
        Self { age: Age::Stored, ..Self::default() }
    }
}

impl Expressions for Language {
    fn compile(&mut self, source: &str) -> Result<ExpressionId, ExpressionFault> {
        let expression = Expression::compile("expression", source, self.age).map_err(|error| {
            let place = error.line.zip(error.column).map(|(line, column)| format!("line {line}, column {column}: "));
            ExpressionFault::new(format!("{}{}", place.unwrap_or_default(), error.reason))
        })?;
        let id = ExpressionId(u32::try_from(self.expressions.len()).unwrap_or(u32::MAX));
        self.expressions.push(expression);
        Ok(id)
    }

    fn holds(
        &self,
        expression: ExpressionId,
        input: &RuleInput,
        now: Timestamp,
        memo: &Memo,
    ) -> Result<bool, ExpressionFault> {
        allowance::enter()?;
        let missing = || ExpressionFault::new("the expression does not exist".to_owned());
        let expression = self.expressions.get(expression.0 as usize).ok_or_else(missing)?;
        let fault = |fault: ScriptFault| ExpressionFault { unasked: fault.unasked(), reason: fault.to_string() };
        let mut memo = memo.borrow_mut();
        let seen = match &mut *memo {
            Some(seen) => seen,
            none => none.insert(Box::new(Seen::of(&MessageFacts::of(input.clone())).map_err(fault)?)),
        };
        let seen = seen.downcast_mut::<Seen>().ok_or_else(missing)?;
        expression.holds(seen, &Given { now, chance: 0.0 }).map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::RuleSet;
    use angarium_domain::{ids::RuleId, rule_input::MessageOutline};

    fn set(expressions: &[&str]) -> Result<RuleSet, Vec<angarium_domain::problem::ValueProblem>> {
        let spec = |expression: &&str| {
            let rule = json!({"name": "x", "when": {"custom": {"expression": expression}},
                "then": {"sender": "ACME"}});
            (RuleId::new(), serde_json::from_value(rule).unwrap())
        };
        RuleSet::compile(expressions.iter().map(spec).collect(), Box::<Language>::default())
    }

    fn input(particulars: Value) -> RuleInput {
        let input = RuleInput::read(serde_json::from_value(particulars).unwrap(), None).unwrap();
        input.within(MessageOutline { channel: "sms".into(), to: "+46701234567".into(), ..MessageOutline::default() })
    }

    #[test]
    fn expressions_see_the_message_and_what_it_says() {
        let said = json!({"attributes": {"amount": 120}, "contact": {"country": "SE"}});
        for (expression, holds) in [
            ("attributes.amount > 100 && country == \"SE\"", true),
            ("channel == \"sms\" && phone_country(to) == \"SE\"", true),
            ("priority == \"high\"", false),
        ] {
            let decision = set(&[expression]).unwrap().decide(&input(said.clone()), Timestamp::UNIX_EPOCH);
            assert_eq!((decision.held == 1, decision.faults.len()), (holds, 0), "{expression}");
        }
        let both = set(&["channel == \"sms\"", "attributes.amount == 120"]).unwrap();
        assert_eq!(both.decide(&input(said), Timestamp::UNIX_EPOCH).held, 2, "one view serves both");
    }

    #[test]
    fn what_does_not_compile_says_where_and_what_fails_why() {
        let problem = set(&["true &&\n  amout > 1"]).unwrap_err().remove(0);
        assert!(problem.detail.starts_with("must compile: line 2, column "), "{}", problem.detail);
        assert!(problem.pointer.ends_with("/when/custom/expression"), "{}", problem.pointer);
        let decision = set(&["attributes.amount"]).unwrap().decide(&input(json!({})), Timestamp::UNIX_EPOCH);
        assert_eq!((decision.held, decision.faults.len()), (0, 1));
    }
}
