//! Holds a request to the OpenAPI document: types, members, and every bound, in one place.
//!
//! The reader walks the JSON as it comes and builds no tree, so that a long body costs only its length, and stops at
//! [`MOST_PROBLEMS`]. It must not know the meaning of a member: the handler checks that.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, mem,
    sync::LazyLock,
};

use jiff::Timestamp;
use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use smallvec::{SmallVec, smallvec};
use utoipa::ToSchema;

use super::{
    fields::escaped,
    problem::{FieldProblem, MOST_PROBLEMS},
};

/// How deep alternatives with a tag may lie within each other: each level reads its text again.
const MOST_NESTED: usize = 16;

/// The allowed form of a value, by its schema.
#[derive(Debug)]
pub struct Form {
    /// The schemas that others refer to.
    named: HashMap<String, Node>,
    root: Node,
}

/// The kinds of JSON values, as bits.
mod kind {
    pub const NULL: u8 = 1;
    pub const BOOLEAN: u8 = 1 << 1;
    pub const INTEGER: u8 = 1 << 2;
    pub const NUMBER: u8 = 1 << 3;
    pub const STRING: u8 = 1 << 4;
    pub const ARRAY: u8 = 1 << 5;
    pub const OBJECT: u8 = 1 << 6;
    pub const ANY: u8 = u8::MAX;

    /// Each with the words for it.
    pub const NAMES: [(u8, &str, &str); 7] = [
        (NULL, "null", "null"),
        (BOOLEAN, "boolean", "true or false"),
        (INTEGER, "integer", "a whole number"),
        (NUMBER, "number", "a number"),
        (STRING, "string", "a string"),
        (ARRAY, "array", "a list"),
        (OBJECT, "object", "an object"),
    ];
}

/// One schema.
#[derive(Debug, Default)]
struct Node {
    /// The name of another schema, which replaces this one.
    reference: Option<String>,
    /// The alternatives; the node has no other requirement.
    one_of: Vec<Self>,
    kinds: u8,
    members: Vec<Member>,
    others: Others,
    properties: Range,
    /// The form of a list's elements.
    items: Option<Box<Self>>,
    length: Range,
    characters: Range,
    pattern: Option<Regex>,
    example: Option<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    format: Format,
    /// The texts that it may be; empty for any.
    choices: Vec<String>,
}

#[derive(Debug)]
struct Member {
    name: String,
    node: Node,
    required: bool,
}

/// The form of members that the schema does not name.
#[derive(Debug, Default)]
enum Others {
    #[default]
    Any,
    Refused,
    Of(Box<Node>),
}

#[derive(Debug, Default)]
struct Range {
    least: Option<u64>,
    most: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Format {
    #[default]
    None,
    Int32,
    Int64,
    DateTime,
}

impl Form {
    /// Returns the form of a body's type. An error names a schema with a keyword that this reader does not know.
    pub fn of<T: ToSchema>() -> Result<Self, String> {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        let mut named = HashMap::new();
        for (name, mut schema) in schemas {
            super::json::close_tagged(&mut schema);
            let schema = serde_json::to_value(schema).map_err(|error| format!("{name}: {error}"))?;
            let node = Node::read(&schema).map_err(|error| format!("{name}: {error}"))?;
            named.insert(name, node);
        }
        let root = Node { reference: Some(T::name().into_owned()), ..Node::default() };
        Self { named, root }.checked()
    }

    /// The form of a parameter, by its schema and those of the document.
    pub fn of_schema(schema: &Value, document: &Value) -> Result<Self, String> {
        let mut named = HashMap::new();
        let mut wanted = vec![];
        let root = Node::read(schema)?;
        root.references(&mut wanted);
        while let Some(name) = wanted.pop() {
            if let Entry::Vacant(place) = named.entry(name) {
                let node = Node::read(&document["components"]["schemas"][place.key()])?;
                node.references(&mut wanted);
                place.insert(node);
            }
        }
        Self { named, root }.checked()
    }

    /// Everything that is wrong with a text; `Err` where it is not JSON.
    pub fn problems(&self, json: &[u8]) -> Result<Vec<FieldProblem>, serde_json::Error> {
        let mut reader = Reader { form: self, path: String::new(), problems: Vec::new(), nested: 0 };
        let mut text = serde_json::Deserializer::from_slice(json);
        let read = At { node: &self.root, reader: &mut reader }.deserialize(&mut text).and_then(|()| text.end());
        match read {
            Err(error) if reader.problems.len() < MOST_PROBLEMS => Err(error),
            _ => Ok(reader.problems),
        }
    }

    /// Everything that is wrong with a parameter, which comes as a text.
    pub fn problems_of_text(&self, text: &str) -> Vec<FieldProblem> {
        let kinds = self.kinds(&self.root);
        let json = match kinds & kind::STRING {
            0 => text.to_owned(),
            _ => Value::from(text).to_string(),
        };
        let wrong_type = |_| vec![FieldProblem::new("", "wrong_type", must_be(kinds & !kind::NULL))];
        self.problems(json.as_bytes()).unwrap_or_else(wrong_type)
    }

    /// Each reference leads somewhere, and objects among alternatives can be told apart.
    fn checked(self) -> Result<Self, String> {
        self.named.values().chain([&self.root]).try_for_each(|node| node.all(&mut |node| self.check(node)))?;
        Ok(self)
    }

    fn check(&self, node: &Node) -> Result<(), String> {
        if let Some(name) = &node.reference
            && !self.named.contains_key(name)
        {
            return Err(format!("there is no schema `{name}`"));
        }
        let objects = self.accepting(node, kind::OBJECT);
        match objects.len() > 1 && !objects.iter().all(|node| node.tag().is_some()) {
            true => Err("two alternatives are objects without a tag".to_owned()),
            false => Ok(()),
        }
    }

    fn resolved<'a>(&'a self, mut node: &'a Node) -> &'a Node {
        while let Some(next) = node.reference.as_ref().and_then(|name| self.named.get(name)) {
            node = next;
        }
        node
    }

    fn kinds(&self, node: &Node) -> u8 {
        let node = self.resolved(node);
        node.one_of.iter().fold(node.kinds, |kinds, node| kinds | self.kinds(node))
    }

    /// Returns the nodes that accept a value of this kind: the node itself, or its matching alternatives.
    fn accepting<'a>(&'a self, node: &'a Node, kind: u8) -> SmallVec<[&'a Node; 2]> {
        let node = self.resolved(node);
        if node.one_of.is_empty() {
            return if node.kinds & kind == 0 { SmallVec::new() } else { smallvec![node] };
        }
        node.one_of.iter().flat_map(|node| self.accepting(node, kind)).collect()
    }
}

impl Node {
    fn read(schema: &Value) -> Result<Self, String> {
        let Value::Object(keywords) = schema else { return Err("it is no object".to_owned()) };
        let mut node = Self::default();
        for (keyword, value) in keywords {
            node.add(keyword, value).map_err(|error| format!("{keyword}: {error}"))?;
        }
        if node.reference.is_none() && node.one_of.is_empty() && node.kinds == 0 {
            node.kinds = kind::ANY;
        }
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in required {
            match node.members.iter_mut().find(|member| member.name == name) {
                Some(member) => member.required = true,
                None => return Err(format!("`{name}` is required and no property")),
            }
        }
        Ok(node)
    }

    fn add(&mut self, keyword: &str, value: &Value) -> Result<(), String> {
        let number = || value.as_f64().ok_or("it is no number");
        let count = || value.as_u64().ok_or("it is no count");
        let text = || value.as_str().ok_or("it is no text");
        match keyword {
            "$ref" => self.reference = Some(text()?.rsplit('/').next().unwrap_or_default().to_owned()),
            "type" => self.kinds = kinds(value)?,
            "oneOf" => self.one_of = list(value)?.iter().map(Self::read).collect::<Result<_, _>>()?,
            "properties" => self.members = members(value)?,
            "additionalProperties" if value == &Value::Bool(false) => self.others = Others::Refused,
            "additionalProperties" if value == &Value::Bool(true) => self.others = Others::Any,
            "additionalProperties" => self.others = Others::Of(Box::new(Self::read(value)?)),
            "minProperties" => self.properties.least = Some(count()?),
            "maxProperties" => self.properties.most = Some(count()?),
            "items" => self.items = Some(Box::new(Self::read(value)?)),
            "minItems" => self.length.least = Some(count()?),
            "maxItems" => self.length.most = Some(count()?),
            "minLength" => self.characters.least = Some(count()?),
            "maxLength" => self.characters.most = Some(count()?),
            "pattern" => self.pattern = Some(Regex::new(text()?).map_err(|error| error.to_string())?),
            "minimum" => self.minimum = Some(number()?),
            "maximum" => self.maximum = Some(number()?),
            "format" => self.format = Format::read(text()?)?,
            "enum" => self.choices = list(value)?.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            "const" => self.choices = vec![text()?.to_owned()],
            "example" => self.example = value.as_str().map(str::to_owned),
            "examples" => self.example = value[0].as_str().map(str::to_owned),
            "required" | "description" | "title" | "default" | "deprecated" | "readOnly" | "writeOnly" => {}
            // Any text can be a member's name.
            "propertyNames" if value == &serde_json::json!({"type": "string"}) => {}
            _ => return Err("the reader does not know it".to_owned()),
        }
        Ok(())
    }

    fn children(&self) -> impl Iterator<Item = &Self> {
        let members = self.members.iter().map(|member| &member.node);
        self.one_of.iter().chain(members).chain(self.others.node()).chain(self.items.as_deref())
    }

    fn all(&self, check: &mut dyn FnMut(&Self) -> Result<(), String>) -> Result<(), String> {
        check(self)?;
        self.children().try_for_each(|node| node.all(check))
    }

    fn references(&self, names: &mut Vec<String>) {
        names.extend(self.reference.clone());
        self.children().for_each(|node| node.references(names));
    }

    /// Returns the possible words of the member `type`, if it must be one of some.
    fn tag(&self) -> Option<&[String]> {
        let tag = self.members.iter().find(|member| member.name == "type" && member.required)?;
        Some(&tag.node.choices).filter(|words| !words.is_empty()).map(Vec::as_slice)
    }

    /// Whether it may be anything.
    fn is_free(&self) -> bool {
        self.reference.is_none() && self.kinds == kind::ANY && self.children().next().is_none()
    }

    /// Returns the fault of a text.
    fn text_fault(&self, text: &str) -> Option<(&'static str, String)> {
        if !self.choices.is_empty() && !self.choices.iter().any(|choice| choice == text) {
            return Some(("not_a_choice", must_be_one_of(&self.choices)));
        }
        // Characters are counted only where bytes do not settle it.
        let most = self.characters.most.filter(|most| text.len() as u64 > *most);
        if most.is_some() || self.characters.least.is_some() {
            let fault = self.characters.fault(text.chars().count() as u64, "character");
            if fault.is_some() {
                return fault;
            }
        }
        // The database takes none, and no channel carries one.
        if text.contains('\0') {
            return Some(("wrong_format", "must not contain the character U+0000".to_owned()));
        }
        match &self.pattern {
            Some(pattern) if !pattern.is_match(text) => return Some(("wrong_format", self.must_match(pattern))),
            _ => {}
        }
        let is_wrong = self.format == Format::DateTime && !is_time(text);
        is_wrong.then(|| {
            ("wrong_format", "must be a time in the years 1970 to 9998, such as `2027-01-31T09:00:00Z`".to_owned())
        })
    }

    fn must_match(&self, pattern: &Regex) -> String {
        match &self.example {
            Some(example) => format!("must have the form of `{example}`, for example: it must match `{pattern}`"),
            None => format!("must match `{pattern}`"),
        }
    }

    /// Returns the fault of an object with this number of members.
    fn members_fault(&self, count: u64) -> Option<(&'static str, String)> {
        self.properties.fault(count, "member").map(|(_, detail)| ("invalid", detail))
    }

    /// Returns the fault of a number.
    fn number_fault(&self, number: f64) -> Option<(&'static str, String)> {
        let (least, most) = match self.format {
            Format::Int32 => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
            Format::Int64 => (Some(i64::MIN as f64), Some(i64::MAX as f64)),
            Format::None | Format::DateTime => (None, None),
        };
        if let Some(least) = self.minimum.or(least).filter(|least| number < *least) {
            return Some(("out_of_range", format!("must be at least {least}")));
        }
        let most = self.maximum.or(most).filter(|most| number > *most)?;
        Some(("out_of_range", format!("must be at most {most}")))
    }
}

impl Others {
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Of(node) => Some(node),
            Self::Any | Self::Refused => None,
        }
    }
}

impl Range {
    fn fault(&self, count: u64, what: &str) -> Option<(&'static str, String)> {
        let plural = |number: u64| if number == 1 { "" } else { "s" };
        if let Some(least) = self.least.filter(|least| count < *least) {
            return Some(("too_short", format!("must have at least {least} {what}{}", plural(least))));
        }
        let most = self.most.filter(|most| count > *most)?;
        Some(("too_long", format!("must have at most {most} {what}{}", plural(most))))
    }
}

impl Format {
    /// Texts that a handler decodes and checks are not checked by the reader.
    fn read(name: &str) -> Result<Self, String> {
        match name {
            "int32" => Ok(Self::Int32),
            "int64" => Ok(Self::Int64),
            "date-time" => Ok(Self::DateTime),
            "byte" | "float" | "double" => Ok(Self::None),
            _ => Err(format!("the reader does not know the format `{name}`")),
        }
    }
}

/// RFC 3339, section 5.6.
fn is_time(text: &str) -> bool {
    static FORM: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$").ok());
    text.len() <= 64 && FORM.as_ref().is_some_and(|form| form.is_match(text)) && text.parse::<Timestamp>().is_ok()
}

fn kinds(value: &Value) -> Result<u8, String> {
    let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    names.iter().try_fold(0, |kinds, name| {
        let known = kind::NAMES.iter().find(|(_, known, _)| name == known);
        known.map(|(kind, ..)| kinds | kind).ok_or_else(|| format!("there is no type {name}"))
    })
}

fn list(value: &Value) -> Result<&[Value], &'static str> {
    value.as_array().map(Vec::as_slice).ok_or("it is no list")
}

fn members(value: &Value) -> Result<Vec<Member>, String> {
    let members = value.as_object().ok_or("it is no object")?.iter();
    let read = |(name, schema): (&String, &Value)| {
        let node = Node::read(schema).map_err(|error| format!("{name}: {error}"))?;
        Ok(Member { name: name.clone(), node, required: false })
    };
    members.map(read).collect()
}

fn must_be(kinds: u8) -> String {
    let all = kind::NAMES.iter().filter(|(kind, ..)| kinds & kind != 0);
    // A whole number is a number.
    let words: Vec<_> = all
        .filter(|(kind, ..)| *kind != kind::INTEGER || kinds & kind::NUMBER == 0)
        .map(|(_, _, words)| *words)
        .collect();
    format!("must be {}", words.join(" or "))
}

fn must_be_one_of<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    format!("must be one of {}", words.join(", "))
}

/// The reader's position and findings.
struct Reader<'f> {
    form: &'f Form,
    path: String,
    problems: Vec<FieldProblem>,
    nested: usize,
}

impl<'f> Reader<'f> {
    /// Notes a problem; fails once there are enough of them, which ends the reading.
    fn push<E: Error>(&mut self, name: &str, code: &str, detail: impl Into<String>) -> Result<(), E> {
        let problem = match name {
            "" => FieldProblem::new(&self.path, code, detail),
            name => FieldProblem::new(format!("{}/{}", self.path, escaped(name)), code, detail),
        };
        if self.problems.last() != Some(&problem) {
            self.problems.push(problem);
        }
        if self.problems.len() < MOST_PROBLEMS { Ok(()) } else { Err(E::custom("there are enough problems")) }
    }

    fn note<E: Error>(&mut self, fault: Option<(&'static str, String)>) -> Result<(), E> {
        fault.map_or(Ok(()), |(code, detail)| self.push("", code, detail))
    }

    /// Reads a part of the present value.
    fn within<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&escaped(name));
        let result = read(self);
        self.path.truncate(length);
        result
    }
}

/// One value and its form.
struct At<'f, 'r> {
    node: &'f Node,
    reader: &'r mut Reader<'f>,
}

impl<'f> At<'f, '_> {
    /// A value that is neither a list nor an object, against each alternative.
    fn scalar<E: Error>(self, kind: u8, fault: impl Fn(&'f Node) -> Option<(&'static str, String)>) -> Result<(), E> {
        let accepting = self.reader.form.accepting(self.node, kind);
        if accepting.is_empty() {
            return self.wrong_type();
        }
        let mut faults = accepting.into_iter().map(fault);
        let first = faults.next().flatten();
        match first.is_none() || faults.any(|fault| fault.is_none()) {
            true => Ok(()),
            false => self.reader.note(first),
        }
    }

    fn wrong_type<E: Error>(self) -> Result<(), E> {
        let kinds = self.reader.form.kinds(self.node);
        self.reader.push("", "wrong_type", must_be(kinds))
    }

    /// An object of one of several forms, by its tag.
    fn tagged(self, json: &RawValue) -> Result<(), serde_json::Error> {
        let alternatives = self.reader.form.accepting(self.node, kind::OBJECT);
        let tag = match serde_json::from_str::<Tag<'_>>(json.get()) {
            Ok(tag) => tag.text(),
            Err(_) => return self.reader.push("type", "duplicate", "must be given once"),
        };
        let Some(tag) = tag else {
            let given = serde_json::from_str::<Tag<'_>>(json.get()).is_ok_and(|tag| tag.kind.is_some());
            return match given {
                true => self.reader.push("type", "wrong_type", must_be(kind::STRING)),
                false => self.reader.push("type", "missing", "must be given"),
            };
        };
        let meant = alternatives.iter().find(|node| node.tag().is_some_and(|words| words.iter().any(|it| *it == *tag)));
        let Some(node) = meant else {
            let words = alternatives.iter().filter_map(|node| node.tag()).flatten();
            return self.reader.push("type", "not_a_choice", must_be_one_of(words));
        };
        if self.reader.nested == MOST_NESTED {
            return self.reader.push("", "too_deep", format!("must lie at most {MOST_NESTED} levels deep"));
        }
        self.reader.nested += 1;
        let mut text = serde_json::Deserializer::from_str(json.get());
        At { node, reader: &mut *self.reader }.deserialize(&mut text)?;
        self.reader.nested -= 1;
        Ok(())
    }
}

/// The tag of an object.
#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(rename = "type", default, borrow)]
    kind: Option<&'a RawValue>,
}

impl Tag<'_> {
    fn text(&self) -> Option<String> {
        self.kind.filter(|raw| raw.get().len() <= 256).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }
}

impl<'de> DeserializeSeed<'de> for At<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let form = self.reader.form;
        if form.resolved(self.node).one_of.is_empty() || form.accepting(self.node, kind::OBJECT).len() < 2 {
            return json.deserialize_any(self);
        }
        // An object's form is only known once its tag is, which may stand at its end.
        let raw = <&RawValue>::deserialize(json)?;
        let read = match raw.get().starts_with('{') {
            true => self.tagged(raw),
            false => serde_json::Deserializer::from_str(raw.get()).deserialize_any(self),
        };
        read.map_err(D::Error::custom)
    }
}

impl<'de> Visitor<'de> for At<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar(kind::NULL, |_| None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar(kind::BOOLEAN, |_| None)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.scalar(kind::INTEGER | kind::NUMBER, |node| node.number_fault(number as f64))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.scalar(kind::INTEGER | kind::NUMBER, |node| node.number_fault(number as f64))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        // A whole number beyond 64 bits is read as this.
        let is_long = number.fract() == 0.0 && number.abs() >= i64::MAX as f64;
        let is_beyond = |node: &Node| is_long && node.number_fault(number).is_some();
        let whole = self.reader.form.accepting(self.node, kind::INTEGER);
        let kinds = if whole.into_iter().any(is_beyond) { kind::INTEGER | kind::NUMBER } else { kind::NUMBER };
        self.scalar(kinds, |node| node.number_fault(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.scalar(kind::STRING, |node| node.text_fault(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let accepting = self.reader.form.accepting(self.node, kind::ARRAY);
        let Some(node) = accepting.first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return self.wrong_type();
        };
        let (mut count, reader) = (0, self.reader);
        let within = |most: &Option<u64>, count: u64| most.is_none_or(|most| count < most);
        while within(&node.length.most, count) {
            let read = match &node.items {
                Some(items) => {
                    reader.within(&count.to_string(), |reader| list.next_element_seed(At { node: items, reader }))?
                }
                None => list.next_element::<IgnoredAny>()?.map(drop),
            };
            match read {
                Some(()) => count += 1,
                None => return reader.note(node.length.fault(count, "element")),
            }
        }
        // Elements beyond the limit are only counted.
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        reader.note(node.length.fault(count, "element"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let accepting = self.reader.form.accepting(self.node, kind::OBJECT);
        let Some(node) = accepting.first() else {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return self.wrong_type();
        };
        let (mut count, reader) = (0, self.reader);
        let mut seen = vec![false; node.members.len()];
        while let Some(name) = object.next_key_seed(Name(node))? {
            count += 1;
            let (name, within) = match &name {
                Found::Member(member, index) => {
                    if mem::replace(&mut seen[*index], true) {
                        reader.push(&member.name, "duplicate", "must be given once")?;
                    }
                    (member.name.as_str(), Some(&member.node))
                }
                Found::Other(name) => (name.as_str(), node.others.node()),
            };
            match within.filter(|node| !node.is_free()) {
                Some(node) => reader.within(name, |reader| object.next_value_seed(At { node, reader }))?,
                None => drop(object.next_value::<IgnoredAny>()?),
            }
            if within.is_none() && matches!(node.others, Others::Refused) {
                reader.push(name, "unknown_field", "does not exist")?;
            }
        }
        for (member, seen) in node.members.iter().zip(seen) {
            if member.required && !seen {
                reader.push(&member.name, "missing", "must be given")?;
            }
        }
        reader.note(node.members_fault(count))
    }
}

/// Reads a member's name.
struct Name<'f>(&'f Node);

enum Found<'f> {
    Member(&'f Member, usize),
    Other(String),
}

impl<'de, 'f> DeserializeSeed<'de> for Name<'f> {
    type Value = Found<'f>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Found<'f>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'f> Visitor<'_> for Name<'f> {
    type Value = Found<'f>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Found<'f>, E> {
        let known = self.0.members.iter().enumerate().find(|(_, member)| member.name == name);
        Ok(known.map_or_else(|| Found::Other(name.to_owned()), |(index, member)| Found::Member(member, index)))
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use serde_json::{Map, json};

    use super::*;

    fn document() -> Value {
        serde_json::to_value(crate::api::openapi()).unwrap()
    }

    /// Returns the schemas of all JSON bodies and of all parameters, with their operations.
    fn schemas(document: &Value) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                if !body.is_null() {
                    found.push((format!("{method} {path}"), body.clone()));
                }
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    found.push((format!("{method} {path}: {}", parameter["name"]), parameter["schema"].clone()));
                }
            }
        }
        found
    }

    #[test]
    fn the_reader_knows_every_schema_of_a_request() {
        let document = document();
        let schemas = schemas(&document);
        assert!(schemas.len() > 100, "{}", schemas.len());
        for (name, schema) in schemas {
            Form::of_schema(&schema, &document).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// Returns a schema with its references resolved.
    fn resolved<'a>(mut schema: &'a Value, document: &'a Value) -> &'a Value {
        while let Some(name) = schema["$ref"].as_str() {
            schema = document.pointer(name.trim_start_matches('#')).unwrap();
        }
        schema
    }

    /// A value that is mostly as the schema says.
    fn draw(schema: &Value, document: &Value, rng: &mut Rng, depth: u8) -> Value {
        let schema = resolved(schema, document);
        if rng.u8(0..40) == 0 || depth > 8 {
            return anything(rng);
        }
        if let Some(alternatives) = schema["oneOf"].as_array() {
            return draw(rng.choice(alternatives).unwrap(), document, rng, depth + 1);
        }
        let choices = schema["enum"].as_array();
        if let Some(choices) = choices.filter(|_| rng.u8(0..8) > 0) {
            return rng.choice(choices).unwrap().clone();
        }
        let kinds = schema["type"].as_array().map_or_else(|| vec![&schema["type"]], |kinds| kinds.iter().collect());
        match rng.choice(kinds).and_then(|kind| kind.as_str()).unwrap_or_default() {
            "object" => draw_object(schema, document, rng, depth),
            "array" => {
                let bound = schema["maxItems"].as_u64().filter(|_| rng.u8(0..10) == 0).unwrap_or(2);
                let items = if schema["items"].is_null() { &Value::Null } else { &schema["items"] };
                (0..around(bound.min(120), rng)).map(|_| draw(items, document, rng, depth + 1)).collect()
            }
            "string" => draw_text(schema, rng),
            "integer" => {
                let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
                let bound = if rng.bool() { least } else { most };
                json!(bound.map_or(rng.i64(0..5), |bound| bound as i64 + rng.i64(-1..=1)))
            }
            "number" => {
                let bound = if rng.bool() { schema["minimum"].as_f64() } else { schema["maximum"].as_f64() };
                json!(bound.unwrap_or(1.0) + rng.choice([-0.001, 0.0, 0.001]).unwrap())
            }
            "boolean" => json!(rng.bool()),
            "null" => Value::Null,
            _ => anything(rng),
        }
    }

    fn draw_object(schema: &Value, document: &Value, rng: &mut Rng, depth: u8) -> Value {
        let mut object = Map::new();
        let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let odds = if required.iter().any(|it| *it == name) { 1 } else { rng.u8(1..40) };
            if odds < 12 && rng.u8(0..60) > 0 {
                object.insert(name.clone(), draw(member, document, rng, depth + 1));
            }
        }
        if rng.u8(0..30) == 0 || schema["additionalProperties"].is_object() {
            object.insert("ö".repeat(rng.usize(1..4)), draw(&schema["additionalProperties"], document, rng, depth + 1));
        }
        Value::Object(object)
    }

    /// A text at a bound, in characters of one to four bytes.
    fn draw_text(schema: &Value, rng: &mut Rng) -> Value {
        let example = schema["example"].as_str().filter(|_| rng.bool());
        let bound = if rng.bool() { schema["minLength"].as_u64() } else { schema["maxLength"].as_u64() };
        let letter = rng.choice(["a", "ö", "—", "🦀"]).unwrap();
        match (schema["format"].as_str(), example) {
            (Some("date-time"), _) => json!(*rng.choice(&["2027-01-31T09:00:00Z", "2027-01-31", "x"]).unwrap()),
            (_, Some(example)) => json!(example),
            _ => json!(letter.repeat(around(bound.unwrap_or(2), rng) as usize)),
        }
    }

    fn around(bound: u64, rng: &mut Rng) -> u64 {
        (bound + rng.u64(0..3)).saturating_sub(1)
    }

    fn anything(rng: &mut Rng) -> Value {
        let values = [
            json!(null),
            json!(true),
            json!(7),
            json!(0.5),
            json!("x"),
            json!([]),
            json!(["x", 1]),
            json!({}),
            json!({"type": "x"}),
        ];
        rng.choice(values).unwrap()
    }

    /// jsonschema is an independent implementation of JSON Schema: on every drawn value, both must agree.
    #[test]
    fn the_reader_refuses_what_json_schema_refuses() {
        let (document, mut rng) = (document(), angarium_domain::seed::rng());
        let (mut good, mut bad) = (0, 0);
        for (name, schema) in schemas(&document) {
            let form = Form::of_schema(&schema, &document).unwrap();
            let mut whole = schema.clone();
            whole["components"] = document["components"].clone();
            let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&whole).unwrap();
            for _ in 0..100 {
                let value = draw(&schema, &document, &mut rng, 0);
                let problems = form.problems(value.to_string().as_bytes()).unwrap();
                assert_eq!(problems.is_empty(), validator.is_valid(&value), "{name}: {value}: {problems:?}");
                for problem in &problems {
                    let of_member = ["unknown_field", "missing"].contains(&problem.code.as_str());
                    assert!(of_member || value.pointer(&problem.pointer).is_some(), "{problem:?} of {value}");
                }
                *if problems.is_empty() { &mut good } else { &mut bad } += 1;
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} good and {bad} bad ones");
    }

    fn problems_of(schema: &Value, text: &str) -> Vec<(String, String)> {
        let form = Form::of_schema(schema, &Value::Null).unwrap();
        form.problems(text.as_bytes()).unwrap().into_iter().map(|it| (it.pointer, it.code)).collect()
    }

    #[test]
    fn a_body_of_a_million_faults_is_read_to_the_twentieth() {
        let closed = json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false});
        let unknown: String = (0..1_000_000).map(|n| format!("\"x{n}\":0,")).collect();
        // The text is invalid JSON only at its end, which no reader reaches.
        assert_eq!(problems_of(&closed, &format!("{{{unknown}")).len(), MOST_PROBLEMS);
        let twice = format!("{{{}\"a\":\"\"}}", "\"a\":\"\",".repeat(1_000_000));
        assert_eq!(problems_of(&closed, &twice), [("/a".to_owned(), "duplicate".to_owned())]);
        let texts = json!({"type": "array", "items": {"type": "string"}});
        assert_eq!(problems_of(&texts, &format!("[{}", "1,".repeat(1_000_000))).len(), MOST_PROBLEMS);
        let few = json!({"type": "array", "items": {"type": "string"}, "maxItems": 3});
        let many = format!("[{}\"\"]", "\"\",".repeat(1_000_000));
        assert_eq!(problems_of(&few, &many), [(String::new(), "too_long".to_owned())]);
    }

    #[test]
    fn a_name_of_megabytes_is_not_repeated() {
        let closed = json!({"type": "object", "additionalProperties": false});
        let problems = problems_of(&closed, &format!("{{\"{}\": 1}}", "ö".repeat(1 << 20)));
        assert!(problems[0].0.len() < 1024, "{}", problems[0].0.len());
    }

    #[test]
    fn depth_is_refused_before_it_costs_anything() {
        let retry = schemas(&document()).into_iter().find(|(name, _)| name == "post /v1/routes").unwrap().1;
        let form = Form::of_schema(&retry, &document()).unwrap();
        let nested = |depth: usize| {
            let (open, close) = (r#"{"type":"custom","rule":"r","otherwise":"#.repeat(depth), "}".repeat(depth));
            let retry = format!(r#"{open}{{"type":"none"}}{close}"#);
            let body = format!(r#"{{"channel":"sms","spec":{{"candidates":[{{"connection":"a"}}],"retry":{retry}}}}}"#);
            form.problems(body.as_bytes()).map(|problems| problems.into_iter().map(|it| it.code).collect::<Vec<_>>())
        };
        assert_eq!(nested(10).unwrap(), Vec::<String>::new());
        assert_eq!(nested(20).unwrap(), ["too_deep"]);
        assert_eq!(nested(100_000).unwrap(), ["too_deep"]);
        let free = json!({"type": "object"});
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(problems_of(&free, &deep), []);
    }

    #[test]
    fn a_parameter_is_a_text_that_may_be_a_number() {
        let number = json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 250});
        let form = Form::of_schema(&number, &Value::Null).unwrap();
        let code = |text: &str| form.problems_of_text(text).first().map(|it| it.code.clone());
        assert_eq!([code("1"), code("250")], [None, None]);
        assert_eq!([code("0"), code("251")].map(Option::unwrap), ["out_of_range", "out_of_range"]);
        for long in ["100000000000000000000", "-100000000000000000000"] {
            assert_eq!(code(long).as_deref(), Some("out_of_range"), "{long}");
        }
        for text in ["", "x", "\"1\"", "[1]", "{}", "null", "1.5", "0x1", "1 1"] {
            assert_eq!(code(text).as_deref(), Some("wrong_type"), "{text}");
        }
    }
}
