//! The form of a rule, for the document and for naming its faults; the domain's type reads it.
#![expect(dead_code, reason = "the domain's types have the values; these list them in the document")]

use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::message::PriorityName;

/// A condition on a message's data, and the consequences if it holds.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleSpec)]
pub struct RuleDocument {
    /// For people.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// If rules disagree, the higher priority wins; 0 by default.
    #[serde(default)]
    priority: i32,
    /// How much a match counts; 1, if left out.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    weight: f64,
    /// `false`: it is kept and does nothing.
    #[serde(default)]
    active: bool,
    /// It counts from then on.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<Timestamp>,
    /// It counts before then.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// Left out: it holds for every message.
    #[serde(default)]
    when: Option<ConditionDocument>,
    then: EffectDocument,
    /// Only together with `then.refuse`: the fate of a message if the rule's expression fails, or is not asked for lack
    /// of time. `open` by default.
    #[serde(default)]
    #[schema(required = false, value_type = FailsName)]
    fails: FailsName,
}

/// The fate of a message if the rule that may refuse it fails.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Fails)]
pub enum FailsName {
    /// It is taken.
    #[default]
    Open,
    /// It is refused.
    Refuse,
    /// It waits for a minute, and is asked about again.
    Hold,
}

/// A requirement: exactly one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleCondition, min_properties = 1, max_properties = 1)]
pub struct ConditionDocument {
    /// Each holds.
    #[serde(default)]
    #[schema(no_recursion, min_items = 1)]
    all: Vec<Self>,
    /// One holds.
    #[serde(default)]
    #[schema(no_recursion, min_items = 1)]
    any: Vec<Self>,
    /// It does not hold.
    #[serde(default)]
    #[schema(no_recursion, required = false, value_type = ConditionDocument)]
    not: Option<Box<Self>>,
    #[serde(default)]
    #[schema(required = false, value_type = AmountDocument)]
    amount: Option<AmountDocument>,
    #[serde(default)]
    #[schema(required = false, value_type = CustomerDocument)]
    customer: Option<CustomerDocument>,
    #[serde(default)]
    #[schema(required = false, value_type = IndustryDocument)]
    industry: Option<IndustryDocument>,
    #[serde(default)]
    #[schema(required = false, value_type = GeographyDocument)]
    geography: Option<GeographyDocument>,
    #[serde(default)]
    #[schema(required = false, value_type = CustomDocument)]
    custom: Option<CustomDocument>,
}

/// One text, or a list of alternatives.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = OneOrMore)]
pub enum Texts {
    One(String),
    Many(Vec<String>),
}

/// A number, or a decimal as text, with at most 6 digits after the point.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Amount)]
pub enum Amount {
    Number(#[schema(inline)] Number),
    Text(#[schema(inline)] Decimal),
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(minimum = -9e12, maximum = 9e12)]
pub struct Number(f64);

#[derive(Debug, Deserialize, ToSchema)]
#[schema(pattern = r"^\s*-?[0-9]{1,12}(\.[0-9]{1,6})?\s*$", example = "129.50")]
pub struct Decimal(String);

/// `attributes.amount`, both ends included, and `attributes.currency`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleAmount, min_properties = 1)]
pub struct AmountDocument {
    #[serde(default)]
    min: Option<Amount>,
    #[serde(default)]
    max: Option<Amount>,
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    currency: Option<Texts>,
}

/// A requirement on the recipient: each given member must hold.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleCustomer, min_properties = 1)]
pub struct CustomerDocument {
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    id: Option<Texts>,
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    segment: Option<Texts>,
    #[serde(default, rename = "type")]
    #[schema(required = false, value_type = Texts)]
    kind: Option<Texts>,
}

/// A requirement on the recipient's industry.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleIndustry)]
pub struct IndustryDocument {
    is: Texts,
    /// How risky it is.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    risk_weight: f64,
}

/// A requirement on the recipient's place: each given level must hold.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleGeography, min_properties = 1)]
pub struct GeographyDocument {
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    country: Option<Texts>,
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    region: Option<Texts>,
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    city: Option<Texts>,
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    postal_prefix: Option<Texts>,
}

/// A requirement that no other condition can express.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleExpression)]
pub struct CustomDocument {
    /// In Rhai, with a truth for a value.
    #[schema(min_length = 1, max_length = 4096, example = "attributes.amount > 100")]
    expression: String,
}

/// The consequences: at least one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleEffect, min_properties = 1)]
pub struct EffectDocument {
    /// In order of preference: the first one is used for a message that names none.
    #[serde(default)]
    #[schema(required = false, value_type = Texts)]
    channels: Option<Texts>,
    #[serde(default)]
    #[schema(required = false, value_type = Preferences)]
    connections: Option<Preferences>,
    /// Used if the message names none.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    sender: Option<String>,
    /// The parameter `template` of the content, if the message has none.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    template: Option<String>,
    #[serde(default)]
    priority: Option<PriorityName>,
    #[serde(default)]
    refuse: Option<RefusalDocument>,
}

/// One connection's id or uid, or a list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = RuleConnections)]
pub enum Preferences {
    One(String),
    Many(Vec<Preference>),
}

/// A connection's id or uid, with or without a score.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = RuleConnection)]
pub enum Preference {
    Name(String),
    Scored(ScoredDocument),
}

/// A word for a connection, or against it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleConnectionScore)]
pub struct ScoredDocument {
    #[schema(min_length = 1, max_length = 128)]
    connection: String,
    /// Negative against it; 1, if left out.
    #[serde(default)]
    #[schema(minimum = -1, maximum = 1)]
    score: f64,
}

/// The message is not sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleRefusal)]
pub struct RefusalDocument {
    #[schema(min_length = 1, max_length = 256)]
    reason: String,
}
