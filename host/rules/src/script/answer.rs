//! Hooks' answers, read strictly: an unknown member, or one of another type, is a fault that names it.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use rhai::Dynamic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::{ScriptFault, ScriptFaultKind, budget, facts::CANDIDATE, limits};
use angarium_domain::{
    message::{Channel, Priority},
    retry::LONGEST_DELAY_MS,
    rule_input::Object,
};

/// Messages that may follow one delivery, and words it may be marked with.
const MAX_FOLLOW_UPS: usize = 10;
const MAX_TAGS: usize = 16;
/// Bytes of a reason, a tag or a connection's name.
const MAX_WORD: usize = 512;

/// The answer of `admit`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AdmitAnswer {
    #[serde(flatten)]
    pub verdict: AdmitVerdict,
    /// In place of the message's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Added to the message's own, or replacing those of the same name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub attributes: Object,
}

/// Whether a message is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum AdmitVerdict {
    #[default]
    Allow,
    Refuse {
        reason: String,
    },
    /// It is accepted, and due then; a time that is past holds nothing up.
    Hold {
        at: Timestamp,
        reason: Option<String>,
    },
}

/// The answer of `route`; `None` leaves the value as it was.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Routing {
    /// The candidates to ask, in this order, and no others.
    pub candidates: Option<Vec<Choice>>,
    pub channels: Option<Vec<Channel>>,
    pub reason: Option<String>,
}

/// A candidate in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    pub connection: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer of `retry`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum RetryAnswer {
    /// The route's policy decides.
    #[default]
    Default,
    Retry {
        #[serde(serialize_with = "seconds")]
        after: Duration,
    },
    GiveUp {
        reason: Option<String>,
    },
    FallBack {
        reason: Option<String>,
    },
}

/// The answer of `on_outcome`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct FollowUp {
    pub messages: Vec<FollowUpMessage>,
    /// Words that the delivery is marked with.
    pub tags: Vec<String>,
}

/// A message to send after a delivery. Members that are left out are as in the message before it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FollowUpMessage {
    pub channel: Option<Channel>,
    pub to: Option<String>,
    #[serde(serialize_with = "seconds", deserialize_with = "from_seconds")]
    pub after: Duration,
    pub template: Option<String>,
    pub subject: Option<String>,
    pub text: Option<String>,
    pub priority: Option<Priority>,
    pub attributes: Object,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn from_seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnswerFault {
    field: String,
    reason: String,
}

impl AnswerFault {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let cut = |text: String| text.chars().take(MAX_WORD).collect();
        Self { field: cut(field.into()), reason: cut(reason.into()) }
    }

    pub(super) fn of(self, script: &str, function: &str) -> ScriptFault {
        let subject = if self.field.is_empty() { String::new() } else { format!(" `{}`", self.field) };
        ScriptFault {
            script: script.to_owned(),
            function: function.to_owned(),
            reason: format!("the answer's value{subject}: {}", self.reason),
            kind: ScriptFaultKind::Answer(self.field),
            line: None,
            column: None,
        }
    }
}

type Reading<T> = Result<T, AnswerFault>;

impl AdmitAnswer {
    pub(super) fn read(answer: &Dynamic) -> Reading<Self> {
        let Some(mut members) = action_or_members(answer, "`()`, a text or a map")? else { return Ok(Self::default()) };
        let verdict = match members.text("action")?.as_deref() {
            None | Some("allow") => AdmitVerdict::Allow,
            Some("refuse") => AdmitVerdict::Refuse { reason: members.required_text("reason")? },
            Some("hold") => AdmitVerdict::Hold { at: members.time("at")?, reason: members.text("reason")? },
            Some(_) => return Err(AnswerFault::new("action", "must be `allow`, `refuse` or `hold`")),
        };
        let admission = Self { verdict, priority: members.priority()?, attributes: members.object("attributes")? };
        members.end()?;
        Ok(admission)
    }
}

impl Routing {
    pub(super) fn read(answer: &Dynamic) -> Reading<Self> {
        if answer.is_unit() {
            return Ok(Self::default());
        }
        if let Ok(list) = answer.as_array_ref() {
            return Ok(Self { candidates: Some(choices(&list)?), ..Self::default() });
        }
        let Ok(map) = answer.as_map_ref() else {
            return Err(AnswerFault::new("", "must be `()`, a list of candidates or a map"));
        };
        let candidates = match map.get("candidates").filter(|it| !it.is_unit()).map(Dynamic::as_array_ref) {
            None => None,
            Some(Ok(list)) => Some(choices(&list)?),
            Some(Err(_)) => return Err(AnswerFault::new("candidates", "must be a list")),
        };
        let mut members = Members::of(At::Answer, &map, |name| name != "candidates")?;
        let routing = Self { candidates, channels: members.channels()?, reason: members.text("reason")? };
        members.end()?;
        Ok(routing)
    }
}

fn choices(list: &[Dynamic]) -> Reading<Vec<Choice>> {
    let mut choices: Vec<Choice> = Vec::with_capacity(list.len());
    let mut bytes = 0;
    for (nth, item) in list.iter().enumerate() {
        let at = At::Item(&At::Member(&At::Answer, "candidates"), nth);
        let choice = choice(at, item)?;
        if choices.iter().any(|it| it.connection == choice.connection) {
            return Err(AnswerFault::new(
                at.to_string(),
                format!("must be listed once (got `{}` twice)", choice.connection),
            ));
        }
        bytes += choice.connection.len() + choice.reason.as_ref().map_or(0, String::len);
        fits(bytes)?;
        choices.push(choice);
    }
    Ok(choices)
}

fn choice(at: At<'_>, item: &Dynamic) -> Reading<Choice> {
    if let Ok(connection) = item.as_immutable_string_ref() {
        return Ok(Choice { connection: connection.to_string(), score: None, reason: None });
    }
    let Ok(map) = item.as_map_ref() else {
        return Err(AnswerFault::new(at.to_string(), "must be a connection's name or a candidate"));
    };
    // A candidate may be handed back with all that it came with.
    let given = |name: &str| CANDIDATE.iter().any(|(member, ..)| *member == name);
    let mut members = Members::of(at, &map, |name| matches!(name, "connection" | "score") || !given(name))?;
    let choice = Choice {
        connection: members.required_text("connection")?,
        score: members.number("score")?,
        reason: members.text("reason")?,
    };
    members.end()?;
    Ok(choice)
}

impl RetryAnswer {
    pub(super) fn read(answer: &Dynamic) -> Reading<Self> {
        if let Ok(seconds) = answer.as_int().map(|it| it as f64).or_else(|_| answer.as_float()) {
            return Ok(Self::Retry { after: wait("after", seconds)? });
        }
        let expected = "`()`, a number of seconds, a text or a map";
        let Some(mut members) = action_or_members(answer, expected)? else { return Ok(Self::Default) };
        let reexperiment = match members.required_text("action")?.as_str() {
            "default" => Self::Default,
            "retry" => {
                let seconds = members.number("after")?.ok_or_else(|| AnswerFault::new("after", "must be given"))?;
                Self::Retry { after: wait("after", seconds)? }
            }
            "give_up" => Self::GiveUp { reason: members.text("reason")? },
            "fall_back" => Self::FallBack { reason: members.text("reason")? },
            _ => return Err(AnswerFault::new("action", "must be `default`, `retry`, `give_up` or `fall_back`")),
        };
        members.end()?;
        Ok(reexperiment)
    }
}

impl FollowUp {
    pub(super) fn read(answer: &Dynamic) -> Reading<Self> {
        let (messages, tags) = match json_of(answer)? {
            Value::Null => (Vec::new(), Vec::new()),
            Value::Array(messages) => (messages, Vec::new()),
            Value::Object(mut members) => {
                let tags =
                    Members::new("", members.remove("tags").map(|it| ("tags".to_owned(), it)).into_iter().collect())
                        .list("tags")?
                        .unwrap_or_default();
                let messages = match members.remove("messages") {
                    Some(Value::Array(messages)) if members.is_empty() => messages,
                    Some(_) => return Err(AnswerFault::new("messages", "must be a list, beside `tags` alone")),
                    None if members.is_empty() => Vec::new(),
                    None => vec![Value::Object(members)],
                };
                (messages, tags)
            }
            _ => return Err(AnswerFault::new("", "must be `()`, a message or a list of messages")),
        };
        if messages.len() > MAX_FOLLOW_UPS {
            return Err(AnswerFault::new("messages", format!("must be at most {MAX_FOLLOW_UPS}")));
        }
        if tags.len() > MAX_TAGS {
            return Err(AnswerFault::new("tags", format!("must be at most {MAX_TAGS}")));
        }
        let messages = messages.into_iter().enumerate().map(|(nth, it)| FollowUpMessage::read(nth, it));
        let tags = tags.into_iter().enumerate().map(|(nth, tag)| word(format!("tags[{nth}]"), tag));
        Ok(Self { messages: messages.collect::<Reading<_>>()?, tags: tags.collect::<Reading<_>>()? })
    }
}

impl FollowUpMessage {
    fn read(nth: usize, message: Value) -> Reading<Self> {
        let at = format!("messages[{nth}]");
        let Value::Object(members) = message else { return Err(AnswerFault::new(at, "must be a map")) };
        let mut members = Members::new(&at, members);
        let after = members.number("after")?.unwrap_or_default();
        let message = Self {
            channel: members.channel("channel")?,
            to: members.text("to")?,
            after: wait(&members.place("after"), after)?,
            template: members.text("template")?,
            subject: members.long_text("subject")?,
            text: members.long_text("text")?,
            priority: members.priority()?,
            attributes: members.object("attributes")?,
        };
        members.end()?;
        Ok(message)
    }
}

pub(super) fn read_condition(answer: &Dynamic) -> Reading<bool> {
    answer.as_bool().map_err(|found| AnswerFault::new("", format!("must be `true` or `false`, not {found}")))
}

pub(super) fn read_score(answer: &Dynamic) -> Reading<f64> {
    let number = answer.as_int().map(|it| it as f64).or_else(|_| answer.as_float());
    let number = number.map_err(|found| AnswerFault::new("", format!("must be a number, not {found}")))?;
    if number.is_finite() { Ok(number) } else { Err(AnswerFault::new("", "must be a finite number")) }
}

/// `"refuse"` says the same as `#{action: "refuse"}`.
fn action_or_members(answer: &Dynamic, expected: &str) -> Reading<Option<Members>> {
    match json_of(answer)? {
        Value::Null => Ok(None),
        Value::String(action) => {
            let action = [("action".to_owned(), Value::String(action))];
            Ok(Some(Members::new("", action.into_iter().collect())))
        }
        Value::Object(members) => Ok(Some(Members::new("", members))),
        _ => Err(AnswerFault::new("", format!("must be {expected}"))),
    }
}

fn wait(field: &str, seconds: f64) -> Reading<Duration> {
    let longest = Duration::from_millis(LONGEST_DELAY_MS);
    let found = Duration::try_from_secs_f64(seconds).ok().filter(|it| *it <= longest);
    found.ok_or_else(|| AnswerFault::new(field, format!("must be seconds, from 0 to {}", longest.as_secs())))
}

fn word(at: String, value: Value) -> Reading<String> {
    match value {
        Value::String(text) if !text.is_empty() && text.len() <= MAX_WORD => Ok(text),
        _ => Err(AnswerFault::new(at, format!("must be a text of 1 to {MAX_WORD} bytes"))),
    }
}

/// Members of a map that are taken one by one: those that are left over at the end are unknown.
struct Members {
    at: String,
    left: Map<String, Value>,
}

impl Members {
    fn new(at: &str, mut members: Map<String, Value>) -> Self {
        members.retain(|_, value| !value.is_null());
        Self { at: at.to_owned(), left: members }
    }

    /// Returns the wanted members of a map.
    fn of(at: At<'_>, map: &rhai::Map, wanted: impl Fn(&str) -> bool) -> Reading<Self> {
        Ok(Self::new(&at.to_string(), members(at, map, wanted, 0)?))
    }

    fn place(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    fn fault<T>(&self, name: &str, reason: impl Into<String>) -> Reading<T> {
        Err(AnswerFault::new(self.place(name), reason))
    }

    fn text(&mut self, name: &str) -> Reading<Option<String>> {
        self.left.remove(name).map(|value| word(self.place(name), value)).transpose()
    }

    fn required_text(&mut self, name: &str) -> Reading<String> {
        self.text(name)?.map_or_else(|| self.fault(name, "must be given"), Ok)
    }

    fn long_text(&mut self, name: &str) -> Reading<Option<String>> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.fault(name, "must be a text"),
        }
    }

    fn number(&mut self, name: &str) -> Reading<Option<f64>> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(_) => self.fault(name, "must be a number"),
        }
    }

    fn time(&mut self, name: &str) -> Reading<Timestamp> {
        let text = self.left.remove(name);
        let time = text.as_ref().and_then(Value::as_str).and_then(|it| it.parse().ok());
        time.map_or_else(|| self.fault(name, "must be a time such as 2026-03-01T12:00:00Z"), Ok)
    }

    fn list(&mut self, name: &str) -> Reading<Option<Vec<Value>>> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => self.fault(name, "must be a list"),
        }
    }

    fn object(&mut self, name: &str) -> Reading<Object> {
        match self.left.remove(name) {
            None => Ok(Object::new()),
            Some(Value::Object(object)) => Ok(object),
            Some(_) => self.fault(name, "must be a map"),
        }
    }

    fn priority(&mut self) -> Reading<Option<Priority>> {
        let Some(text) = self.text("priority")? else { return Ok(None) };
        let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
        found.map_or_else(|| self.fault("priority", "must be `low`, `normal`, `high` or `urgent`"), |it| Ok(Some(it)))
    }

    fn channel(&mut self, name: &str) -> Reading<Option<Channel>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map_or_else(|_| self.fault(name, "must be a channel such as `email`"), |it| Ok(Some(it)))
    }

    /// `channel` and `channels` say the same of one and of several.
    fn channels(&mut self) -> Reading<Option<Vec<Channel>>> {
        let one = self.channel("channel")?;
        let Some(list) = self.list("channels")? else { return Ok(one.map(|it| vec![it])) };
        if one.is_some() {
            return self.fault("channel", "is not allowed together with `channels`");
        }
        if list.is_empty() {
            return self.fault("channels", "must name a channel");
        }
        let parse = |value: &Value| value.as_str().and_then(|it| it.parse().ok());
        let channels: Option<Vec<Channel>> = list.iter().map(parse).collect();
        channels.map_or_else(|| self.fault("channels", "must be channels such as `email`"), |it| Ok(Some(it)))
    }

    fn end(self) -> Reading<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => self.fault(name, "does not exist"),
        }
    }
}

/// A position in an answer: written out only for a fault.
#[derive(Clone, Copy)]
enum At<'a> {
    Answer,
    Member(&'a Self, &'a str),
    Item(&'a Self, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => Ok(()),
            Self::Member(Self::Answer, name) => f.write_str(name),
            Self::Member(of, name) => write!(f, "{of}.{name}"),
            Self::Item(of, nth) => write!(f, "{of}[{nth}]"),
        }
    }
}

fn json_of(value: &Dynamic) -> Reading<Value> {
    let value = json(At::Answer, value, 0)?;
    fits(text_of(&value))?;
    Ok(value)
}

/// The bytes of the texts and names of a value.
fn text_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_of).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| name.len() + text_of(value)).sum(),
    }
}

fn fits(bytes: usize) -> Reading<()> {
    if bytes <= limits::ANSWER {
        return Ok(());
    }
    Err(AnswerFault::new("", format!("must have at most {} bytes of texts and names", limits::ANSWER)))
}

/// A map as JSON, for scripts that ask for it.
pub(super) fn json_of_map(map: &rhai::Map) -> Reading<Value> {
    members(At::Answer, map, |_| true, 0).map(Value::Object)
}

fn json(at: At<'_>, value: &Dynamic, depth: usize) -> Reading<Value> {
    if depth > limits::VALUE_DEPTH {
        return Err(AnswerFault::new(at.to_string(), format!("must be nested at most {} deep", limits::VALUE_DEPTH)));
    }
    if !budget::may_go_on() {
        return Err(AnswerFault::new("", "must be smaller"));
    }
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(list) = value.as_array_ref() {
        let items = list.iter().enumerate().map(|(nth, item)| json(At::Item(&at, nth), item, depth + 1));
        return items.collect::<Reading<_>>().map(Value::Array);
    }
    if let Ok(map) = value.as_map_ref() {
        return members(at, &map, |_| true, depth).map(Value::Object);
    }
    if let Ok(text) = value.as_immutable_string_ref() {
        return Ok(Value::String(text.to_string()));
    }
    let number = || value.as_float().ok().and_then(Number::from_f64).map(Value::Number);
    let plain = value.as_bool().map(Value::Bool).or_else(|_| value.as_int().map(Value::from)).ok();
    let plain = plain.or_else(number).or_else(|| value.as_char().ok().map(|it| Value::String(it.to_string())));
    plain.ok_or_else(|| AnswerFault::new(at.to_string(), format!("a {} can't be answered", value.type_name())))
}

fn members(at: At<'_>, map: &rhai::Map, wanted: impl Fn(&str) -> bool, depth: usize) -> Reading<Map<String, Value>> {
    let members = map.iter().filter(|(name, _)| wanted(name));
    members.map(|(name, item)| Ok((name.to_string(), json(At::Member(&at, name), item, depth + 1)?))).collect()
}
