//! A member of a JSON object that is one value or a list of them: `#[serde(with = "one_or_many")]`.
//!
//! A single value is written without a list, so that a reader of single values still works.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Given<T> {
    // First: a struct would take a list for its own members.
    Many(Vec<T>),
    One(T),
}

/// Writes the only one as it is, and several as a list.
///
/// # Errors
/// As the serializer's.
pub fn serialize<T: Serialize, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    match values {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

/// Reads either; `null` is none.
///
/// # Errors
/// If it is neither a value nor a list of them.
pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(match Option::<Given<T>>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Given::One(one)) => vec![one],
        Some(Given::Many(many)) => many,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Letter {
        #[serde(default, with = "super")]
        to: Vec<String>,
    }

    #[test]
    fn one_is_written_as_one_and_both_are_read() {
        for (given, written) in [
            (r#"{"to":"a"}"#, r#"{"to":"a"}"#),
            (r#"{"to":["a"]}"#, r#"{"to":"a"}"#),
            (r#"{"to":["a","b"]}"#, r#"{"to":["a","b"]}"#),
            (r#"{"to":null}"#, r#"{"to":[]}"#),
            ("{}", r#"{"to":[]}"#),
        ] {
            let letter: Letter = serde_json::from_str(given).unwrap();
            assert_eq!(serde_json::to_string(&letter).unwrap(), written, "{given}");
        }
        assert!(serde_json::from_str::<Letter>(r#"{"to":7}"#).is_err());
    }
}
