//! Words for explanations, which cost nothing if they are not read.

/// Either a text or nothing at all.
pub trait Words: Sized {
    fn say(words: impl FnOnce() -> String) -> Self;

    fn join(parts: Vec<Self>, between: &str) -> Self;

    /// These words within others.
    fn wrap(self, words: impl FnOnce(&str) -> String) -> Self;
}

/// On the way of a message.
impl Words for () {
    fn say(_: impl FnOnce() -> String) {}

    fn join(_: Vec<Self>, _: &str) {}

    fn wrap(self, _: impl FnOnce(&str) -> String) {}
}

/// The implementation for explanations.
impl Words for String {
    fn say(words: impl FnOnce() -> String) -> Self {
        words()
    }

    fn join(parts: Vec<Self>, between: &str) -> Self {
        parts.join(between)
    }

    fn wrap(self, words: impl FnOnce(&str) -> String) -> Self {
        words(&self)
    }
}
