//! The variables that closures of a run share with the function around them. A closure that is kept in a variable which
//! it shares holds itself, and nothing would ever free it; a long chain of such closures would be freed by as deep a
//! recursion. So a run keeps hold of each shared variable until it ends, and then empties them one by one.

use std::mem;

use rhai::{Dynamic, Scope};

/// Marks a reference to a shared variable that is held; copies of the reference have the mark too.
const SEEN: i32 = 1;

/// Returns a reference to the variable, if closures share it and it is not held yet. A constant cannot be marked: it is
/// held once more at each look.
pub(super) fn newly_shared(scope: &mut Scope, name: &str) -> Option<Dynamic> {
    let reference = scope.get(name).filter(|it| it.is_shared() && it.tag() != SEEN)?.clone();
    if let Some(variable) = scope.get_mut(name) {
        variable.set_tag(SEEN);
    }
    Some(reference)
}

/// A constant that closures of several runs share, one run after another: no run holds it, or empties it at its end.
pub(super) fn kept(value: Dynamic) -> Dynamic {
    let mut value = value.into_read_only().into_shared();
    value.set_tag(SEEN);
    value
}

/// References to shared variables, which are emptied when it is dropped.
#[derive(Default)]
pub(super) struct Shared(pub Vec<Dynamic>);

impl Drop for Shared {
    fn drop(&mut self) {
        for variable in &mut self.0 {
            // The variable's value is dropped after its lock.
            let _held = variable.write_lock::<Dynamic>().map(|mut it| mem::take(&mut *it));
        }
    }
}
