//! The faults of a document from any source, all of them at once.

use serde::Serialize;
use utoipa::ToSchema;

/// A fault and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueProblem {
    /// A JSON pointer (RFC 6901) into the document.
    pub pointer: String,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub detail: String,
}

/// One bad field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldProblem {
    /// A JSON pointer (RFC 6901) into the body; `query/…` and `header/…` name other parts.
    #[schema(example = "/content/attachments/0/content")]
    pub pointer: String,
    /// For programs.
    #[schema(example = "not_base64")]
    pub code: String,
    /// For people; it does not repeat the value.
    pub detail: String,
}

impl FieldProblem {
    /// A bad field by its pointer.
    pub fn new(pointer: impl Into<String>, code: &str, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code: code.to_owned(), detail: detail.into() }
    }
}

/// Collects faults; knows the position of the checks.
#[derive(Debug, Default)]
pub struct Problems {
    path: String,
    found: Vec<ValueProblem>,
}

impl Problems {
    /// Runs checks one level deeper.
    pub fn within<T>(&mut self, name: &str, checks: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        let result = checks(self);
        self.path.truncate(length);
        result
    }

    /// Runs checks on the elements of a list.
    pub fn each<'a, T: 'a>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = &'a T>,
        mut checks: impl FnMut(&mut Self, &'a T),
    ) {
        self.within(name, |problems| {
            for (index, item) in items.into_iter().enumerate() {
                problems.within(&index.to_string(), |problems| checks(problems, item));
            }
        });
    }

    /// Reports a fault at the present position.
    pub fn bad(&mut self, code: &'static str, detail: impl Into<String>) {
        self.found.push(ValueProblem { pointer: self.path.clone(), code, detail: detail.into() });
    }

    /// A place one level deeper is bad unless this holds.
    pub fn check(&mut self, ok: bool, name: &str, code: &'static str, detail: impl Into<String>) {
        if !ok {
            self.within(name, |problems| problems.bad(code, detail));
        }
    }

    /// Checks a short text: not empty, no control characters, and a limited length.
    pub fn plain(&mut self, name: &str, text: &str, most: usize) {
        self.within(name, |problems| {
            if text.trim().is_empty() {
                problems.bad("empty", "must have a character at least, or be left out");
            }
            if text.chars().count() > most {
                problems.bad("too_long", format!("must have at most {most} characters"));
            }
            if text.chars().any(char::is_control) {
                problems.bad("control_character", "must have no control character, such as a line break");
            }
        });
    }

    /// How much was found so far.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.found.len()
    }

    /// All that was found.
    #[must_use]
    pub fn into_found(self) -> Vec<ValueProblem> {
        self.found
    }

    /// This, unless something was found.
    ///
    /// # Errors
    /// All that was found.
    pub fn unless_any<T>(self, value: T) -> Result<T, Vec<ValueProblem>> {
        if self.found.is_empty() { Ok(value) } else { Err(self.found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_names_the_place() {
        let mut problems = Problems::default();
        problems.within("a/b", |problems| problems.each("c", &[1, 2], |it, n| it.check(*n == 1, "d", "x", "")));
        problems.check(false, "e", "y", "");
        let pointers: Vec<_> = problems.into_found().into_iter().map(|it| it.pointer).collect();
        assert_eq!(pointers, ["/a~1b/c/1/d", "/e"]);
    }
}
