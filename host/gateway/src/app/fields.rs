//! Collects the faults of a request, so that one answer names all of them.

mod cut;

use super::{Result, error::UseCaseError};
use angarium_domain::message::Channel;
pub use angarium_domain::problem::FieldProblem;
pub use cut::Cut;

/// The most invalid fields that are listed: a body may have millions.
pub const MOST_PROBLEMS: usize = 20;
/// An answer has as much of a member's name at most, in characters.
const MOST_NAME: usize = 128;

/// The bad fields so far, and where in the body the checks stand.
#[derive(Debug, Default)]
pub struct Fields {
    path: String,
    problems: Vec<FieldProblem>,
    /// The part of the body that the checks don't see.
    cut: Cut,
}

impl Fields {
    /// Returns fields for the checks of a body without its cut members.
    pub fn after(problems: Vec<FieldProblem>, cut: Cut) -> Self {
        Self { path: String::new(), problems, cut }
    }

    /// Runs checks one level deeper.
    pub fn within<T>(&mut self, name: &str, checks: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&escaped(name));
        let result = checks(self);
        self.path.truncate(length);
        result
    }

    /// Runs checks on the elements of a list.
    pub fn each<T>(&mut self, name: &str, items: impl IntoIterator<Item = T>, mut checks: impl FnMut(&mut Self, T)) {
        self.within(name, |fields| {
            for (index, item) in items.into_iter().enumerate() {
                fields.within(&index.to_string(), |fields| checks(fields, item));
            }
        });
    }

    /// The field where the checks stand is bad.
    pub fn bad(&mut self, code: &str, detail: impl Into<String>) {
        self.push(FieldProblem::new(&self.path, code, detail));
    }

    /// A field one level deeper is bad unless this holds.
    pub fn check(&mut self, ok: bool, name: &str, code: &str, detail: impl FnOnce() -> String) {
        if !ok {
            self.within(name, |fields| fields.bad(code, detail()));
        }
    }

    /// A field one level deeper is not there and has to be.
    pub fn missing(&mut self, name: &str) {
        self.check(false, name, "missing", || "must be given".to_owned());
    }

    /// Reports a fault at this pointer, independent of the current position: `query/limit`.
    pub fn elsewhere(&mut self, pointer: impl Into<String>, code: &str, detail: impl Into<String>) {
        self.push(FieldProblem::new(pointer, code, detail));
    }

    fn push(&mut self, mut problem: FieldProblem) {
        if problem.pointer.starts_with('/') {
            problem.pointer = self.cut.original(&problem.pointer);
        }
        let empty = problem.code == "empty" && self.cut.emptied(&problem.pointer);
        if self.problems.len() < MOST_PROBLEMS && !empty && !self.cut.explains(&problem.pointer) {
            self.problems.push(problem);
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Ends the checks.
    ///
    /// # Errors
    /// With all that is wrong, if anything is.
    pub fn finish(self) -> Result<()> {
        if self.problems.is_empty() { Ok(()) } else { Err(UseCaseError::Invalid(self.problems)) }
    }

    /// Returns the faults.
    pub fn into_problems(self) -> Vec<FieldProblem> {
        self.problems
    }
}

/// A member's name in a JSON pointer (RFC 6901, section 3); of a long one, its beginning.
pub fn escaped(name: &str) -> String {
    match name.char_indices().nth(MOST_NAME) {
        None => name.replace('~', "~0").replace('/', "~1"),
        Some((end, _)) => format!("{}…", escaped(&name[..end])),
    }
}

/// A member's name as it is, from a JSON pointer.
pub fn unescaped(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// A short text for the database and for logs: no control characters, of a length in these bounds.
pub fn plain(fields: &mut Fields, name: &str, text: &str, most: usize) {
    fields.within(name, |fields| {
        if text.trim().is_empty() {
            fields.bad("empty", "must have a character other than spaces");
        }
        if text.chars().count() > most {
            fields.bad("too_long", format!("must have at most {most} characters"));
        }
        if text.chars().any(char::is_control) {
            fields.bad("control_character", "must have no control character, such as a line break");
        }
    });
}

/// A channel that has to be named.
pub fn channel(fields: &mut Fields, name: Option<&str>) -> Option<Channel> {
    let Some(name) = name else {
        fields.missing("channel");
        return None;
    };
    let parsed = name.parse::<Channel>();
    if let Err(error) = &parsed {
        fields.check(false, "channel", "wrong_format", || error.to_string());
    }
    parsed.ok()
}

/// Words that paths have in a uid's place: `/v1/rules/evaluate` would not reach a rule. One dot and two dots change the
/// path (RFC 3986, section 5.2.4).
pub const IN_PATHS: [&str; 7] = [".", "..", "backtest", "batch", "discards", "evaluate", "replays"];

/// A client's own name for a resource: it works wherever the id does, so it must not look like one.
pub fn uid(fields: &mut Fields, uid: &str) {
    plain(fields, "uid", uid, 128);
    fields.check(uid.trim() == uid || uid.trim().is_empty(), "uid", "wrong_format", || {
        "must not begin or end with a space: it could not be told from another".to_owned()
    });
    fields.check(!looks_like_an_id(uid), "uid", "reserved", || {
        "must not begin like an id of the gateway's own".to_owned()
    });
    fields.check(!IN_PATHS.contains(&uid), "uid", "reserved", || {
        format!("is not allowed to be one of {}: they mean something else in paths", IN_PATHS.join(", "))
    });
    fields
        .check(!uid.contains('/'), "uid", "reserved", || "must have no slash: it stands in paths as it is".to_owned());
}

fn looks_like_an_id(uid: &str) -> bool {
    angarium_domain::ids::ALL_PREFIXES.iter().any(|prefix| uid.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_names_the_place() {
        let mut fields = Fields::default();
        fields.within("a/b", |fields| {
            fields.each("c", &[1, 2], |fields, n| fields.check(*n == 1, "d", "x", String::new))
        });
        assert_eq!(fields.into_problems()[0].pointer, "/a~1b/c/1/d");
    }

    #[test]
    fn a_uid_is_not_mistaken_for_an_id() {
        let bad = |text: &str| {
            let mut fields = Fields::default();
            uid(&mut fields, text);
            !fields.is_empty()
        };
        assert!(!bad("primary-smtp"));
        for text in [
            "",
            " ",
            " hook",
            "hook\u{a0}",
            "conn_x",
            "route_1",
            "a\nb",
            "a/b",
            "..",
            ".",
            "evaluate",
            &"x".repeat(129),
        ] {
            assert!(bad(text), "{text:?}");
        }
        assert!(!bad("evaluate-2") && !bad("..."));
    }
}
