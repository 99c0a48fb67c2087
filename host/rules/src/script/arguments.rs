//! The arguments of a run: of the facts, those that the script reads, as values of the language and as the key of its
//! remembered answer.

use rhai::{Array, Dynamic, ImmutableString, Map};
use serde_json::Value;

use super::{
    Fallible,
    facts::{CandidateFacts, Fact, Facts, Object},
    reads::Reads,
};

/// An argument of a hook.
#[derive(Clone, Copy)]
pub(super) enum Argument<'a> {
    One(&'a dyn Facts),
    Candidates(&'a [CandidateFacts]),
}

impl Argument<'_> {
    /// Returns the value as a script sees it.
    pub fn value(self, reads: &Reads) -> Fallible<Dynamic> {
        match self {
            Self::One(facts) => map(facts, reads).map(Into::into),
            Self::Candidates(list) => {
                let maps = list.iter().map(|it| map(it, reads).map(Dynamic::from));
                Ok(maps.collect::<Fallible<Array>>()?.into())
            }
        }
    }

    /// Appends bytes that identify the facts as the script reads them.
    pub fn write(self, reads: &Reads, key: &mut Vec<u8>) {
        match self {
            Self::One(facts) => write(facts, reads, key),
            Self::Candidates(list) => {
                key.extend(list.len().to_le_bytes());
                list.iter().for_each(|it| write(it, reads, key));
            }
        }
    }
}

fn map(facts: &dyn Facts, reads: &Reads) -> Fallible<Map> {
    let (mut map, mut failed) = (Map::new(), None);
    facts.each(&mut |name, fact| {
        if reads.has(name) {
            match value(name, fact, reads) {
                Ok(Some(value)) => _ = map.insert(name.into(), value),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
    });
    failed.map_or(Ok(map), Err)
}

fn value(name: &str, fact: Fact<'_>, reads: &Reads) -> Fallible<Option<Dynamic>> {
    Ok(Some(match fact {
        Fact::Unknown => return Ok(None),
        Fact::Text(text) => ImmutableString::from(text).into(),
        Fact::Texts(texts) => {
            texts.iter().map(|it| ImmutableString::from(it.as_str()).into()).collect::<Array>().into()
        }
        Fact::Count(count) => i64::from(count).into(),
        Fact::Number(number) => number.into(),
        Fact::Time(time) => ImmutableString::from(time.to_string()).into(),
        Fact::Object(object) => {
            let members = members(name, object, reads);
            members.map(|(name, it)| Ok((name.as_str().into(), plain(it)?))).collect::<Fallible<Map>>()?.into()
        }
        Fact::Facts(facts) => map(facts, reads)?.into(),
    }))
}

fn plain(value: &Value) -> Fallible<Dynamic> {
    rhai::serde::to_dynamic(value)
}

/// The members of an object that are read.
fn members<'a>(name: &str, object: &'a Object, reads: &'a Reads) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let all = reads.has_all_of(name);
    object.iter().filter(move |(name, _)| all || reads.has(name))
}

/// Each kind of fact begins with its own byte, and its beginning or its form determines its end.
fn write(facts: &dyn Facts, reads: &Reads, key: &mut Vec<u8>) {
    facts.each(&mut |name, fact| {
        if !reads.has(name) {
            return;
        }
        match fact {
            Fact::Unknown => key.push(0),
            Fact::Text(text) => write_text(text, key),
            Fact::Texts(texts) => {
                key.push(2);
                key.extend(texts.len().to_le_bytes());
                texts.iter().for_each(|it| write_text(it, key));
            }
            Fact::Count(count) => {
                key.push(3);
                key.extend(count.to_le_bytes());
            }
            Fact::Number(number) => {
                key.push(4);
                key.extend(number.to_le_bytes());
            }
            Fact::Time(time) => {
                key.push(5);
                key.extend(time.as_nanosecond().to_le_bytes());
            }
            Fact::Object(object) => {
                for (name, value) in members(name, object, reads) {
                    key.push(6);
                    write_text(name, key);
                    // To write JSON into memory does not fail.
                    let _ = serde_json::to_writer(&mut *key, value);
                }
                key.push(7);
            }
            Fact::Facts(facts) => write(facts, reads, key),
        }
    });
}

fn write_text(text: &str, key: &mut Vec<u8>) {
    key.push(1);
    key.extend(text.len().to_le_bytes());
    key.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::{Library, build_engine, facts::MessageFacts};
    use super::*;

    fn reads(source: &str) -> Reads {
        Reads::of(&build_engine(Library::default()).compile(source).unwrap())
    }

    fn message(to: &str, contact: &str) -> MessageFacts {
        MessageFacts { to: to.into(), contact: serde_json::from_str(contact).unwrap(), ..MessageFacts::default() }
    }

    fn key(message: &MessageFacts, reads: &Reads) -> Vec<u8> {
        let mut key = Vec::new();
        Argument::One(message).write(reads, &mut key);
        key
    }

    #[test]
    fn a_script_that_reads_all_is_handed_what_the_facts_serialize_to() {
        let message = message("+46", r#"{"id": 7, "tags": ["a", {"b": 1.5}], "none": null}"#);
        let message = MessageFacts { created_at: Some("2026-03-02T12:00:00Z".parse().unwrap()), ..message };
        let value = Argument::One(&message).value(&Reads::all()).unwrap();
        assert_eq!(rhai::serde::from_dynamic::<Value>(&value).unwrap(), serde_json::to_value(&message).unwrap());
    }

    #[test]
    fn what_is_not_read_is_neither_handed_over_nor_part_of_the_key() {
        let reads = reads("fn admit(message) { message.contact.segment + message.priority }");
        let one = message("+46", r#"{"segment": "vip", "id": 1}"#);
        let value = Argument::One(&one).value(&reads).unwrap();
        let seen: Value = rhai::serde::from_dynamic(&value).unwrap();
        assert_eq!(seen, serde_json::json!({"priority": "", "contact": {"segment": "vip"}}));
        assert_eq!(key(&one, &reads), key(&message("+47", r#"{"segment": "vip", "id": 2}"#), &reads));
        for other in [r#"{"segment": "gold"}"#, r#"{"segment": 1}"#, "{}"] {
            assert_ne!(key(&one, &reads), key(&message("+46", other), &reads), "{other}");
        }
        let urgent = MessageFacts { priority: "urgent".into(), ..one.clone() };
        assert_ne!(key(&one, &reads), key(&urgent, &reads));
    }
}
