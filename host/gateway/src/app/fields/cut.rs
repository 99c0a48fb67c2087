//! The part of a body that checks don't see, since it can't be read.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::Value;

use super::{FieldProblem, unescaped};

/// The invalid members that were cut out of a body.
#[derive(Debug, Default)]
pub struct Cut {
    /// Pointers into the whole body: the cut and the missing members.
    members: Vec<String>,
    /// The elements among them: for each list, the indices in the whole body.
    elements: BTreeMap<String, BTreeSet<usize>>,
}

impl Cut {
    /// Returns an empty cut; the faults of these members are already reported.
    pub fn of_nothing(problems: &[FieldProblem]) -> Self {
        let members = problems.iter().map(|problem| problem.pointer.clone()).filter(|pointer| !pointer.is_empty());
        Self { members: members.collect(), elements: BTreeMap::new() }
    }

    /// Removes what problems are about; where a member is missing, the object that lacks it.
    pub fn take_out(&mut self, body: &mut Value, problems: &[FieldProblem]) {
        let mut lists: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        let mut members = Vec::new();
        for problem in problems {
            members.push(self.original(&problem.pointer));
            let bad = match problem.code.as_str() {
                "missing" => problem.pointer.rsplit_once('/').map_or("", |(object, _)| object),
                _ => &problem.pointer,
            };
            let Some((parent, name)) = bad.rsplit_once('/') else { continue };
            members.push(self.original(bad));
            match (body.pointer_mut(parent), name.parse()) {
                (Some(Value::Object(object)), _) => drop(object.remove(&unescaped(name))),
                (Some(Value::Array(_)), Ok(index)) => drop(lists.entry(parent).or_default().insert(index)),
                _ => {}
            }
        }
        // Pointers and indices move from here on; what lies deeper goes first.
        let elements: Vec<_> = lists.iter().map(|(list, cut)| self.original_elements(list, cut)).collect();
        for (list, cut) in lists.iter().rev() {
            if let Some(Value::Array(elements)) = body.pointer_mut(list) {
                let mut index = 0..;
                elements.retain(|_| index.next().is_some_and(|index| !cut.contains(&index)));
            }
        }
        for (list, indices) in elements {
            self.elements.entry(list).or_default().extend(indices);
        }
        self.members.extend(members.into_iter().filter(|pointer| !pointer.is_empty()));
    }

    /// A pointer into the rest as one into the whole: elements behind one that was cut have moved.
    pub fn original(&self, pointer: &str) -> String {
        let mut whole = String::new();
        for token in pointer.split('/').skip(1) {
            let index = token.parse().ok().filter(|_| self.elements.contains_key(&whole));
            let token =
                index.map_or(Cow::Borrowed(token), |index| self.original_index(&whole, index).to_string().into());
            whole.push('/');
            whole.push_str(&token);
        }
        whole
    }

    /// Whether a problem of the rest says nothing new, or only that something was cut.
    pub fn explains(&self, pointer: &str) -> bool {
        self.elements.contains_key(pointer) || self.members.iter().any(|cut| is_within(pointer, cut))
    }

    /// Whether a part of this value was cut: it need not have been empty.
    pub fn emptied(&self, pointer: &str) -> bool {
        self.members.iter().any(|cut| is_within(cut, pointer))
    }

    fn original_elements(&self, list: &str, indices: &BTreeSet<usize>) -> (String, Vec<usize>) {
        let whole = self.original(list);
        let indices = indices.iter().map(|index| self.original_index(&whole, *index)).collect();
        (whole, indices)
    }

    fn original_index(&self, list: &str, index: usize) -> usize {
        let cut = self.elements.get(list).into_iter().flatten();
        cut.fold(index, |index, cut| if *cut <= index { index + 1 } else { index })
    }
}

fn is_within(pointer: &str, other: &str) -> bool {
    pointer.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cut_out_of(body: &mut Value, problems: &[(&str, &str)]) -> Cut {
        let problems: Vec<_> = problems.iter().map(|(pointer, code)| FieldProblem::new(*pointer, code, "")).collect();
        let mut cut = Cut::default();
        cut.take_out(body, &problems);
        cut
    }

    #[test]
    fn elements_keep_their_places() {
        let mut body = json!({"a": [7, "x", {}, "y"], "0": 1, "b": {"c": 1, "d/e": 2}});
        let bad = [("/a/2/name", "missing"), ("/a/0", "wrong_type"), ("/b/d~1e", "unknown_field")];
        let mut cut = cut_out_of(&mut body, &bad);
        assert_eq!(body, json!({"a": ["x", "y"], "0": 1, "b": {"c": 1}}));
        assert_eq!((cut.original("/a/0"), cut.original("/a/1/z")), ("/a/1".to_owned(), "/a/3/z".to_owned()));
        assert_eq!((cut.original("/b/0"), cut.original("/0")), ("/b/0".to_owned(), "/0".to_owned()));
        cut.take_out(&mut body, &[FieldProblem::new("/a/0", "wrong_type", "")]);
        assert_eq!(body["a"], json!(["y"]));
        assert_eq!(cut.original("/a/0"), "/a/3");
    }

    #[test]
    fn lists_within_lists_are_cut_from_the_depth() {
        let mut body = json!([["a", "b", "c"], ["d"], ["e", "f"]]);
        let bad = [("/1", "invalid"), ("/0/1", "invalid"), ("/2/0", "invalid")];
        let cut = cut_out_of(&mut body, &bad);
        assert_eq!(body, json!([["a", "c"], ["f"]]));
        assert_eq!((cut.original("/0/1"), cut.original("/1/0")), ("/0/2".to_owned(), "/2/1".to_owned()));
    }

    #[test]
    fn what_follows_from_a_cut_is_told_apart() {
        let mut body = json!({"to": {}, "list": [1, 2], "other": 1});
        let cut = cut_out_of(&mut body, &[("/to/address", "missing"), ("/list/0", "invalid"), ("/name", "missing")]);
        assert_eq!(body, json!({"list": [2], "other": 1}));
        for known in ["/to", "/to/address", "/to/x", "/list", "/list/0", "/name"] {
            assert!(cut.explains(known), "{known}");
        }
        assert!(cut.emptied("/to") && !cut.emptied("/other"));
        for new in ["/other", "/too", "/list/1", ""] {
            assert!(!cut.explains(new), "{new}");
        }
    }
}
