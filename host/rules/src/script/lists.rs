//! Functions of lists that ask a function of each member: as the language has them, but a closure of one parameter is
//! called at once. The language first looks for one that takes the member as `this`, and finds out by an error.

use rhai::{
    Array, Caches, Dynamic, EvalContext, FnPtr, GlobalRuntimeState, INT, Module, NativeCallContext, Scope, plugin::*,
};

use super::{Fallible, top};

/// All of them.
pub(super) fn module() -> Module {
    exported_module!(functions)
}

// The macro unwraps arguments that the engine has already matched by number and type.
#[allow(clippy::unwrap_used)]
#[export_module]
mod functions {
    /// The members for which the function returns `true`. It takes the member, or the member and its position; or it
    /// has the member as `this`.
    #[rhai_fn(name = "filter", return_raw, pure)]
    pub fn filter(context: NativeCallContext, list: &mut Array, function: FnPtr) -> Fallible<Array> {
        let mut asked = super::Asked::new(&context, "filter", &function);
        let mut kept = Array::new();
        for (at, item) in list.iter_mut().enumerate() {
            if asked.says(item, at)? {
                kept.push(item.clone());
            }
        }
        Ok(kept)
    }

    /// Returns the function's answer for each member; the function is called as that of `filter` is.
    #[rhai_fn(name = "map", return_raw, pure)]
    pub fn map(context: NativeCallContext, list: &mut Array, function: FnPtr) -> Fallible<Array> {
        let mut asked = super::Asked::new(&context, "map", &function);
        list.iter_mut().enumerate().map(|(at, item)| asked.of(item, at)).collect()
    }

    /// The first member for which the function returns `true`, `()` if there is none; the function is called as that of
    /// `filter` is.
    #[rhai_fn(name = "find", return_raw, pure)]
    pub fn find(context: NativeCallContext, list: &mut Array, function: FnPtr) -> Fallible<Dynamic> {
        let mut asked = super::Asked::new(&context, "find", &function);
        for (at, item) in list.iter_mut().enumerate() {
            if asked.says(item, at)? {
                return Ok(item.clone());
            }
        }
        Ok(Dynamic::UNIT)
    }

    /// Whether the function returns `true` for any member; it is called as that of `filter` is.
    #[rhai_fn(name = "some", return_raw, pure)]
    pub fn some(context: NativeCallContext, list: &mut Array, function: FnPtr) -> Fallible<bool> {
        let mut asked = super::Asked::new(&context, "some", &function);
        for (at, item) in list.iter_mut().enumerate() {
            if asked.says(item, at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the function returns `true` for each member; it is called as that of `filter` is.
    #[rhai_fn(name = "all", return_raw, pure)]
    pub fn all(context: NativeCallContext, list: &mut Array, function: FnPtr) -> Fallible<bool> {
        let mut asked = super::Asked::new(&context, "all", &function);
        for (at, item) in list.iter_mut().enumerate() {
            if !asked.says(item, at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A function that is asked of members.
struct Asked<'a> {
    context: &'a NativeCallContext<'a>,
    caller: &'static str,
    function: &'a FnPtr,
    closure: Option<Closure>,
}

/// The call of a closure with one parameter.
struct Closure {
    state: GlobalRuntimeState,
    found: Caches,
}

impl Closure {
    fn of(context: &NativeCallContext<'_>, function: &FnPtr) -> Option<Self> {
        let parameters = function.curry().len() + 1;
        let has = |module: &Module| module.get_script_fn(function.fn_name(), parameters).is_some();
        // A named one may have namesakes of other parameters.
        if !function.is_anonymous() || !context.iter_namespaces().any(has) {
            return None;
        }
        Some(Self { state: context.global_runtime_state().clone(), found: top::take() })
    }
}

impl Drop for Closure {
    fn drop(&mut self) {
        top::give_back(std::mem::take(&mut self.found));
    }
}

impl<'a> Asked<'a> {
    fn new(context: &'a NativeCallContext<'a>, caller: &'static str, function: &'a FnPtr) -> Self {
        Self { context, caller, function, closure: Closure::of(context, function) }
    }

    /// Returns its answer; a failure is reported as the language does.
    fn of(&mut self, item: &mut Dynamic, at: usize) -> Fallible<Dynamic> {
        let Some(Closure { state, found }) = &mut self.closure else {
            let place = INT::try_from(at).unwrap_or(INT::MAX).into();
            return self.function.call_raw_with_extra_args(self.caller, self.context, Some(item), [], [place], Some(0));
        };
        let arguments: Vec<_> = self.function.curry().iter().chain([&*item]).cloned().collect();
        let mut scope = Scope::new();
        EvalContext::new(self.context.engine(), state, found, &mut scope, None)
            .call_fn(self.function.fn_name(), arguments)
    }

    /// Whether it answers `true`.
    fn says(&mut self, item: &mut Dynamic, at: usize) -> Fallible<bool> {
        Ok(self.of(item, at)?.as_bool().unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use crate::script::{Given, Modules, Script, facts::CandidateFacts, facts::MessageFacts};

    fn chosen(body: &str) -> Vec<String> {
        let source = format!(
            "fn is_b(it) {{ it.connection == \"b\" }}
             fn is_b() {{ false }}
             fn route(message, candidates) {{ {body} }}"
        );
        let script = Script::compile("test.rhai", &source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"));
        let script = script.allowing(std::time::Duration::from_secs(5));
        let candidates = ["a", "b", "c"].map(|it| CandidateFacts { connection: it.into(), ..Default::default() });
        let routing = script.route(&MessageFacts::default(), &candidates, &Given::default());
        let choices = routing.unwrap_or_else(|fault| panic!("{body}: {fault}")).candidates.unwrap_or_default();
        choices.into_iter().map(|it| it.connection).collect()
    }

    #[test]
    fn a_function_takes_a_member_and_its_place_or_has_it_as_this() {
        for (body, expected) in [
            ("candidates.filter(|it| it.connection != \"a\")", vec!["b", "c"]),
            ("candidates.filter(|it, at| at != 1)", vec!["a", "c"]),
            ("candidates.filter(|| this.connection != \"c\")", vec!["a", "b"]),
            ("let out = \"b\"; candidates.filter(|it| it.connection != out)", vec!["a", "c"]),
            ("let out = 0; candidates.filter(|it, at| at != out)", vec!["b", "c"]),
            ("candidates.map(|it| it.connection)", vec!["a", "b", "c"]),
            ("[candidates.find(|it| it.connection > \"a\").connection]", vec!["b"]),
            ("if candidates.some(|it| it.connection == \"c\") { [\"a\"] } else { [] }", vec!["a"]),
            ("if candidates.all(|it| it.connection < \"c\") { [\"a\"] } else { [\"b\"] }", vec!["b"]),
        ] {
            assert_eq!(chosen(body), expected, "{body}");
        }
    }

    #[test]
    fn of_namesakes_the_language_asks_the_one_with_this_first() {
        assert_eq!(chosen("candidates.filter(Fn(\"is_b\"))"), Vec::<String>::new());
    }

    #[test]
    fn what_a_function_changes_is_a_copy_of_its_own() {
        let body = "let seen = candidates.filter(|it| { it.connection = \"x\"; true }); candidates + []";
        assert_eq!(chosen(body), ["a", "b", "c"]);
    }
}
