//! The rules' input: three objects of the client's own, in which some members have a meaning for rules.

pub mod amount;
mod outline;

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::amount::Amount;
pub use self::outline::{MAX_TEXT, MessageOutline, beginning};
use super::{
    country::Country,
    folding::{composed, folded},
    language,
    message::Message,
    problem::{Problems, ValueProblem},
    timezone,
};

/// Of the three objects together, as JSON without spaces.
pub const MOST_BYTES: usize = 16 * 1024;
/// The members of each object, including those of nested objects.
pub const MOST_MEMBERS: usize = 64;
/// Objects and lists within one another; the object itself is the first.
pub const DEEPEST: usize = 4;
/// The compared length of a postal code.
pub const POSTAL_LENGTH: usize = 10;
/// Of a member that rules know.
pub const LONGEST_TEXT: usize = 256;
/// Of one customer.
pub const MOST_SEGMENTS: usize = 32;

/// An object of the client's own.
pub type Object = Map<String, Value>;

/// A text field that a condition may test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    Customer,
    Segment,
    Type,
    Industry,
    Country,
    Region,
    City,
    Postal,
    Currency,
}

impl Field {
    pub const ALL: [Self; 9] = [
        Self::Customer,
        Self::Segment,
        Self::Type,
        Self::Industry,
        Self::Country,
        Self::Region,
        Self::City,
        Self::Postal,
        Self::Currency,
    ];

    /// As explanations name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Segment => "segment",
            Self::Type => "customer type",
            Self::Industry => "industry",
            Self::Country => "country",
            Self::Region => "region",
            Self::City => "city",
            Self::Postal => "postal code",
            Self::Currency => "currency",
        }
    }

    /// Returns the form in which texts are compared ([`folding`](super::folding)): a customer's id with its case,
    /// postal codes without spaces and hyphens, all others without case. `None` if the text cannot be one.
    #[must_use]
    pub fn folded(self, text: &str) -> Option<String> {
        let text = text.trim();
        let form = match self {
            Self::Customer => composed(text).into_owned(),
            Self::Segment | Self::Type | Self::Industry | Self::City => folded(text),
            Self::Region => capital(folded(text)),
            Self::Postal => capital(folded(text).chars().filter(|c| c.is_alphanumeric()).collect()),
            Self::Country if text.eq_ignore_ascii_case("uk") => "GB".to_owned(),
            Self::Country => letters(text, 2)?,
            Self::Currency => letters(text, 3)?,
        };
        (!form.is_empty() && text.chars().count() <= LONGEST_TEXT).then_some(form)
    }

    /// Returns the requirement on a text of this field.
    #[must_use]
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Country => "must be a country's two letters (ISO 3166-1), such as `SE`",
            Self::Currency => "must be a currency's three letters (ISO 4217), such as `EUR`",
            Self::Postal => "must be a text with letters or digits",
            Self::Customer | Self::Segment | Self::Type | Self::Industry | Self::Region | Self::City => {
                "must be a text of 1 to 256 characters"
            }
        }
    }
}

/// Shows codes in capitals, as they are written. A text with letters outside ASCII stays in its folded form, because
/// capitals differ between languages.
fn capital(folded: String) -> String {
    if folded.is_ascii() { folded.to_ascii_uppercase() } else { folded }
}

fn letters(text: &str, count: usize) -> Option<String> {
    let valid = text.len() == count && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    valid.then(|| text.to_ascii_uppercase())
}

/// The three objects as a client gives them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Particulars {
    /// The subject matter of the message: `amount`, `currency`, and any other members.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub attributes: Object,
    /// The recipient: `id`, `segment`, `type`, `industry`, `country`, `region`, `city`, `postal_code`, `timezone`,
    /// `language`, and any other members.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub contact: Object,
    /// The circumstances; a member of a contact's that the contact lacks is looked for here.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub context: Object,
}

impl Particulars {
    /// Returns the objects of an accepted message; an unreadable one counts as empty.
    fn of(message: &Message) -> Self {
        let object = |raw: &Option<Box<serde_json::value::RawValue>>| {
            raw.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
        };
        let body = &message.body;
        Self { attributes: object(&body.attributes), contact: object(&body.contact), context: object(&body.context) }
    }
}

/// A message as rules see it: its data, with the members known to rules parsed and in the form in which they are
/// compared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RuleInput {
    particulars: Particulars,
    /// The country of its address.
    destination: Option<Country>,
    amount: Option<Amount>,
    timezone: Option<String>,
    language: Option<String>,
    /// In the order of the fields.
    known: Vec<(Field, String)>,
    envelope: MessageOutline,
}

impl RuleInput {
    /// A message that was taken. It never fails: a member that can't be read, as one that was stored before rules were,
    /// is there as it came and matches no condition.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self::with(message, None)
    }

    /// Returns the same for a message whose objects were parsed already, before its channel was known or rules were
    /// asked.
    #[must_use]
    pub fn with(message: &Message, read: Option<Self>) -> Self {
        let leg = message.first();
        let destination = Country::of_address(leg.channel.as_str(), leg.recipient());
        let subject = match read {
            Some(read) if read.destination == destination => read,
            read => {
                let particulars = read.map_or_else(|| Particulars::of(message), |it| it.particulars);
                Self::known_of(particulars, destination, Problems::default()).0
            }
        };
        Self { envelope: MessageOutline::of(message), ..subject }
    }

    /// The same before it is accepted.
    #[must_use]
    pub fn unaccepted(self) -> Self {
        Self { envelope: self.envelope.unaccepted(), ..self }
    }

    /// Returns the same with the message's outline.
    #[must_use]
    pub fn within(self, envelope: MessageOutline) -> Self {
        Self { envelope, ..self }
    }

    /// Parses a message's data. `destination` is the country of its address, and is used if the contact does not state
    /// one.
    ///
    /// # Errors
    /// Everything that is too large, too deep, or not what its name promises.
    pub fn read(particulars: Particulars, destination: Option<Country>) -> Result<Self, Vec<ValueProblem>> {
        let mut problems = Problems::default();
        check_size(&particulars, &mut problems);
        let (subject, problems) = Self::known_of(particulars, destination, problems);
        problems.unless_any(subject)
    }

    /// Parses data within the size limit: returns the valid members and the faults.
    fn known_of(particulars: Particulars, destination: Option<Country>, problems: Problems) -> (Self, Problems) {
        let mut reader = Reader { particulars: &particulars, known: Vec::new(), problems };
        let amount = reader.amount();
        reader.currency();
        for (field, member) in [(Field::Customer, "id"), (Field::Type, "type"), (Field::Industry, "industry")] {
            reader.text_of(field, member);
        }
        reader.segments();
        reader.geography(destination);
        let (timezone, language) = (reader.timezone(), reader.language());
        let Reader { mut known, problems, .. } = reader;
        known.sort();
        known.dedup();
        let envelope = MessageOutline::default();
        (Self { particulars, destination, amount, timezone, language, known, envelope }, problems)
    }

    /// The three objects, as they came.
    #[must_use]
    pub const fn particulars(&self) -> &Particulars {
        &self.particulars
    }

    /// Returns the client's objects and the outline.
    #[must_use]
    pub fn into_parts(self) -> (Particulars, MessageOutline) {
        (self.particulars, self.envelope)
    }

    /// Returns the outline: the message's own data beside the client's objects.
    #[must_use]
    pub const fn envelope(&self) -> &MessageOutline {
        &self.envelope
    }

    /// Returns the recipient's identity: the address, or without one the contact's `id`; empty without either.
    #[must_use]
    pub fn recipient(&self) -> &str {
        match self.envelope.to.as_str() {
            "" => self.texts(Field::Customer).next().unwrap_or_default(),
            address => address,
        }
    }

    #[must_use]
    pub const fn amount(&self) -> Option<Amount> {
        self.amount
    }

    /// The recipient's time zone by its IANA name, as the contact says it.
    #[must_use]
    pub fn timezone(&self) -> Option<&str> {
        self.timezone.as_deref()
    }

    #[must_use]
    pub fn language(&self) -> Option<&str> {
        self.language.as_deref()
    }

    /// Everything that conditions may ask for a text of, in the order of the fields.
    pub fn known(&self) -> impl Iterator<Item = (Field, &str)> {
        self.known.iter().map(|(field, text)| (*field, text.as_str()))
    }

    /// Returns the texts of a field, in the form in which texts are compared. A region has two: with its country
    /// (`US-CA`) and without.
    pub fn texts(&self, field: Field) -> impl Iterator<Item = &str> {
        self.known().filter(move |(it, _)| *it == field).map(|(_, text)| text)
    }
}

/// Reads the members that rules know.
struct Reader<'a> {
    particulars: &'a Particulars,
    known: Vec<(Field, String)>,
    problems: Problems,
}

impl<'a> Reader<'a> {
    /// Returns a member of the contact, or of the context in its place; with the name of the object.
    fn member(&self, name: &str) -> Option<(&'static str, &'a Value)> {
        let Particulars { contact, context, .. } = self.particulars;
        let found = |object: &'a Object| object.get(name).filter(|value| !value.is_null());
        found(contact).map(|value| ("contact", value)).or_else(|| found(context).map(|value| ("context", value)))
    }

    fn bad(&mut self, object: &str, member: &str, detail: &str) {
        self.problems.within(object, |problems| problems.check(false, member, "wrong_format", detail));
    }

    fn amount(&mut self) -> Option<Amount> {
        let value = self.particulars.attributes.get("amount").filter(|value| !value.is_null())?;
        let amount = Amount::of_json(value);
        if let Err(error) = &amount {
            self.bad("attributes", "amount", &error.to_string());
        }
        amount.ok()
    }

    fn currency(&mut self) {
        if let Some(value) = self.particulars.attributes.get("currency").filter(|value| !value.is_null()) {
            self.know(Field::Currency, ("attributes", "currency"), value);
        }
    }

    /// Keeps the text, or reports its fault.
    fn know(&mut self, field: Field, (object, member): (&str, &str), value: &Value) -> Option<String> {
        // A number is what some have for an id or a postal code.
        let number = value.as_u64().filter(|_| matches!(field, Field::Customer | Field::Postal));
        let text = value.as_str().map(str::to_owned).or_else(|| number.map(|number| number.to_string()));
        let folded = text.and_then(|text| field.folded(&text));
        match &folded {
            Some(folded) => self.known.push((field, folded.clone())),
            None => self.bad(object, member, field.expected()),
        }
        folded
    }

    fn text_of(&mut self, field: Field, member: &str) -> Option<String> {
        let (object, value) = self.member(member)?;
        self.know(field, (object, member), value)
    }

    /// One, or a list of them.
    fn segments(&mut self) {
        let Some((object, value)) = self.member("segment") else { return };
        match value {
            Value::Array(list) if list.len() <= MOST_SEGMENTS => {
                for value in list {
                    self.know(Field::Segment, (object, "segment"), value);
                }
            }
            Value::Array(list) => {
                let must = format!("must list at most {MOST_SEGMENTS} segments (got {})", list.len());
                self.bad(object, "segment", &must);
            }
            one => drop(self.know(Field::Segment, (object, "segment"), one)),
        }
    }

    fn geography(&mut self, destination: Option<Country>) {
        let country = self.country().or_else(|| {
            let country = destination?.as_str().to_owned();
            self.known.push((Field::Country, country.clone()));
            Some(country)
        });
        if let (Some(region), Some(country)) = (self.text_of(Field::Region, "region"), country) {
            let prefix = format!("{country}-");
            let with_country = region.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(&prefix));
            let bare = if with_country { &region[prefix.len()..] } else { &region };
            let forms = [Field::Region.folded(bare), Field::Region.folded(&format!("{prefix}{bare}"))];
            self.known.extend(forms.into_iter().flatten().map(|text| (Field::Region, text)));
        }
        self.text_of(Field::City, "city");
        self.text_of(Field::Postal, "postal_code");
    }

    fn country(&mut self) -> Option<String> {
        let (object, value) = self.member("country")?;
        let country = self.know(Field::Country, (object, "country"), value)?;
        if Country::exists(&country) {
            return Some(country);
        }
        self.known.retain(|(field, _)| *field != Field::Country);
        self.bad(object, "country", &format!("{} (`{country}` does not exist)", Field::Country.expected()));
        None
    }

    /// A text that names something which exists.
    fn named(&mut self, member: &str, exists: fn(&str) -> bool, must: &str) -> Option<String> {
        let name = self.plain(member)?;
        if exists(&name) {
            return Some(name);
        }
        let object = self.member(member)?.0;
        self.bad(object, member, &format!("{must} (`{name}` does not exist)"));
        None
    }

    fn timezone(&mut self) -> Option<String> {
        self.named("timezone", timezone::exists, "must be the IANA name of a time zone, such as `Europe/Stockholm`")
    }

    fn language(&mut self) -> Option<String> {
        self.named("language", language::exists, "must be the tag of a language (BCP 47), such as `sv` or `pt-BR`")
    }

    fn plain(&mut self, member: &str) -> Option<String> {
        let (object, value) = self.member(member)?;
        let text = value.as_str().filter(|text| (1..=LONGEST_TEXT).contains(&text.chars().count()));
        if text.is_none() {
            self.bad(object, member, "must be a text of 1 to 256 characters");
        }
        text.map(str::to_owned)
    }
}

fn check_size(particulars: &Particulars, problems: &mut Problems) {
    let Particulars { attributes, contact, context } = particulars;
    let mut bytes = 0;
    for (name, object) in [("attributes", attributes), ("contact", contact), ("context", context)] {
        let (within, depth) = extent_of(object.values());
        let members = object.len() + within;
        problems.within(name, |problems| {
            if members > MOST_MEMBERS {
                problems.bad("too_many", format!("must have at most {MOST_MEMBERS} members (got {members})"));
            }
            if depth > DEEPEST {
                problems.bad("too_deep", format!("must have objects and lists at most {DEEPEST} deep (got {depth})"));
            }
        });
        // An empty object takes no memory.
        bytes += if object.is_empty() { 0 } else { length(object) };
    }
    if bytes > MOST_BYTES {
        problems.bad("too_large", "must have at most 16 KiB in `attributes`, `contact` and `context` together");
    }
}

/// The members within a value, and how deep it is.
fn extent(value: &Value) -> (usize, usize) {
    match value {
        Value::Array(list) => extent_of(list),
        Value::Object(object) => {
            let (members, depth) = extent_of(object.values());
            (members + object.len(), depth)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (0, 0),
    }
}

/// The same of what lies within a list or an object.
fn extent_of<'a>(values: impl IntoIterator<Item = &'a Value>) -> (usize, usize) {
    let inner = values.into_iter().map(extent);
    inner.fold((0, 1), |(members, depth), inner| (members + inner.0, depth.max(inner.1 + 1)))
}

fn length(object: &Object) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Neither the counter nor a map with texts for keys can fail.
    serde_json::to_writer(&mut counter, object).map_or(MOST_BYTES + 1, |()| counter.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        legs::Leg,
        message::{Address, Body},
    };

    fn read(value: Value) -> Result<RuleInput, Vec<ValueProblem>> {
        RuleInput::read(serde_json::from_value(value).unwrap(), Country::of_address("sms", "+46701234567"))
    }

    fn texts(subject: &RuleInput, field: Field) -> Vec<&str> {
        subject.texts(field).collect()
    }

    #[test]
    fn known_members_are_read_and_folded() {
        let subject = read(json!({
            "attributes": {"amount": "129.50", "currency": "eur", "more": {"any": 1}},
            "contact": {"id": 17, "segment": ["VIP", " Gold "], "type": "Business", "country": "us", "region": "ca",
                "postal_code": "90210-1234", "timezone": "America/Los_Angeles"},
            "context": {"city": "Beverly Hills", "country": "DE", "language": "en"}}))
        .unwrap();
        assert_eq!(subject.amount(), Some("129.5".parse().unwrap()));
        assert_eq!(texts(&subject, Field::Currency), ["EUR"]);
        assert_eq!(texts(&subject, Field::Customer), ["17"]);
        assert_eq!(texts(&subject, Field::Segment), ["gold", "vip"]);
        assert_eq!(texts(&subject, Field::Country), ["US"], "the context only stands in");
        assert_eq!(texts(&subject, Field::Region), ["CA", "US-CA"]);
        assert_eq!(texts(&subject, Field::City), ["beverly hills"]);
        assert_eq!(texts(&subject, Field::Postal), ["902101234"]);
        assert_eq!((subject.timezone(), subject.language()), (Some("America/Los_Angeles"), Some("en")));
    }

    #[test]
    fn the_address_stands_in_for_the_country() {
        assert_eq!(texts(&read(json!({})).unwrap(), Field::Country), ["SE"]);
        let subject = read(json!({"contact": {"region": "SE-AB", "country": null}})).unwrap();
        assert_eq!(texts(&subject, Field::Region), ["AB", "SE-AB"]);
    }

    #[test]
    fn what_was_read_holds_while_the_address_tells_the_same_country() {
        let to = Some(Address { address: "+46701234567".into(), name: None });
        let mut message = Message::with(Leg { to, ..Leg::on("sms".parse().unwrap()) }, Body::default());
        let known = || read(json!({"attributes": {"amount": 5}})).unwrap();
        let same = RuleInput::with(&message, Some(known()));
        assert_eq!((same.amount(), texts(&same, Field::Country)), (Some("5".parse().unwrap()), vec!["SE"]));
        assert_eq!(same.envelope().to, "+46701234567");
        message.first_mut().channel = "push".parse().unwrap();
        let other = RuleInput::with(&message, Some(known()));
        assert_eq!((other.amount(), texts(&other, Field::Country)), (Some("5".parse().unwrap()), vec![]));
    }

    #[test]
    fn a_text_is_the_same_whatever_its_case_and_encoding() {
        for (field, one, other) in [
            (Field::City, "Gie\u{df}en", " GIESSEN "),
            (Field::City, "Malm\u{f6}", "MALMO\u{308}"),
            (Field::Segment, "CAFE\u{301}", "caf\u{e9}"),
            (Field::Industry, "ΣΊΣΥΦΟΣ", "σίσυφος"),
            (Field::Region, "us-ca", "US-CA"),
            (Field::Region, "Sk\u{e5}ne", "SKA\u{30a}NE"),
            (Field::Customer, "Ren\u{e9}", "Rene\u{301}"),
            (Field::Postal, "sw1a 1aa", "SW1A-1AA"),
        ] {
            assert_eq!(field.folded(one), field.folded(other), "{one}");
            assert_eq!(field.folded(&field.folded(one).unwrap()), field.folded(one), "{one}");
        }
        assert_ne!(Field::Customer.folded("a"), Field::Customer.folded("A"), "an id is compared with its case");
        assert_ne!(Field::City.folded("Diyarbakır"), Field::City.folded("DIYARBAKIR"), "`ı` is a letter of its own");
        assert_eq!(Field::City.folded("ß".repeat(256).as_str()).map(|it| it.len()), Some(512), "given are 256");
        let subject = read(json!({"contact": {"country": "SE", "region": "SE-Sk\u{e5}ne"}})).unwrap();
        assert_eq!(texts(&subject, Field::Region), ["se-sk\u{e5}ne", "sk\u{e5}ne"]);
    }

    #[test]
    fn what_does_not_exist_is_refused_and_one_that_was_stored_takes_nothing_else_with_it() {
        let contact = json!({"country": "XX", "timezone": "Europe/Stokholm", "language": "xx", "city": "Lund"});
        let problems = read(json!({"contact": contact})).unwrap_err();
        let details: Vec<_> = problems.iter().map(|it| (it.pointer.as_str(), it.detail.as_str())).collect();
        assert_eq!(
            details,
            [
                (
                    "/contact/country",
                    "must be a country's two letters (ISO 3166-1), such as `SE` (`XX` does not exist)"
                ),
                (
                    "/contact/timezone",
                    "must be the IANA name of a time zone, such as `Europe/Stockholm` (`Europe/Stokholm` does not exist)"
                ),
                (
                    "/contact/language",
                    "must be the tag of a language (BCP 47), such as `sv` or `pt-BR` (`xx` does not exist)"
                ),
            ]
        );
        let contact = serde_json::value::to_raw_value(&contact).unwrap();
        let body = Body { contact: Some(contact), ..Body::default() };
        let stored = RuleInput::of(&Message::with(Leg::on("sms".parse().unwrap()), body));
        assert_eq!((texts(&stored, Field::City), stored.timezone(), stored.language()), (vec!["lund"], None, None));
        assert_eq!(texts(&stored, Field::Country), Vec::<&str>::new());
    }

    #[test]
    fn every_bad_member_is_named() {
        let problems = read(json!({
            "attributes": {"amount": "much", "currency": "euro", "deep": [[[[1]]]]},
            "contact": {"country": "Sweden", "segment": ["a", 1], "city": ""},
            "context": {"timezone": 1, "list": (0..65).map(|n| (n.to_string(), json!(n))).collect::<Object>()}}))
        .unwrap_err();
        let mut pointers: Vec<_> = problems.iter().map(|it| it.pointer.as_str()).collect();
        pointers.sort_unstable();
        assert_eq!(
            pointers,
            [
                "/attributes",
                "/attributes/amount",
                "/attributes/currency",
                "/contact/city",
                "/contact/country",
                "/contact/segment",
                "/context",
                "/context/timezone"
            ]
        );
        let large = read(json!({"context": {"text": "x".repeat(MOST_BYTES)}})).unwrap_err();
        assert_eq!((large[0].pointer.as_str(), large[0].code), ("", "too_large"));
    }
}
