//! The cost of a delivery by its provider's cost model.
//!
//! `{"currency": "USD", "per": "segment", "micros": 7900}`, with `"countries": {"SE": 45000}` for
//! destinations that cost otherwise, and `"channels": {"mms": {…}}` for channels that do: members
//! that a channel leaves out are the model's own.

use serde_json::Value;

use super::{
    country::Country,
    message::Message,
    provider::{Cost, Descriptor},
    segments::segments,
};

/// The price of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub unit: Cost,
    /// The unit: `message`, `segment`, `page` …
    pub per: String,
}

impl Price {
    /// The price at a provider; `None` if it does not say.
    #[must_use]
    pub fn at(descriptor: &Descriptor, channel: &str, country: Option<Country>) -> Option<Self> {
        let model = &descriptor.cost_model;
        let of_channel = model.get("channels").and_then(|channels| channels.get(channel));
        let member = |name: &str| of_channel.and_then(|it| it.get(name)).or_else(|| model.get(name));
        let of_country = country.and_then(|country| member("countries")?.get(country.as_str()));
        let micros = of_country.or_else(|| member("micros"))?.as_f64()?;
        let text = |name: &str| Some(member(name)?.as_str()?.to_owned());
        Some(Self { unit: Cost { micros: whole(micros)?, currency: text("currency")? }, per: text("per")? })
    }

    /// How many of its units a message will be billed as.
    #[must_use]
    pub fn units(&self, message: &Message) -> u32 {
        if self.per == "segment" { units(message) } else { 1 }
    }
}

impl Cost {
    /// Returns a multiple; `None` if it is out of range.
    #[must_use]
    pub fn times(&self, count: u32) -> Option<Self> {
        Some(Self { micros: self.micros.checked_mul(count.into())?, currency: self.currency.clone() })
    }
}

/// How many units a message will be billed as: the segments of a text, one of anything else.
#[must_use]
pub fn units(message: &Message) -> u32 {
    let leg = message.first();
    match (leg.channel.as_str(), &leg.content.text) {
        ("sms", Some(text)) => leg.content.segments.unwrap_or_else(|| segments(text)),
        _ => 1,
    }
}

/// Returns each invalid member of a model with its requirement.
#[must_use]
pub fn problems(model: &serde_json::Map<String, Value>) -> Vec<(String, &'static str)> {
    let mut problems = Vec::new();
    check_countries("cost_model", model.get("countries"), &mut problems);
    match model.get("channels") {
        None => {}
        Some(Value::Object(channels)) => {
            for (name, of_channel) in channels {
                let at = format!("cost_model.channels.{name}");
                if of_channel.get("micros").is_some_and(|micros| !is_amount(micros)) {
                    problems.push((format!("{at}.micros"), "must be an amount in millionths"));
                }
                check_countries(&at, of_channel.get("countries"), &mut problems);
            }
        }
        Some(_) => problems.push(("cost_model.channels".to_owned(), "must be an object of models by channel")),
    }
    problems
}

fn check_countries(at: &str, countries: Option<&Value>, problems: &mut Vec<(String, &'static str)>) {
    match countries {
        None => {}
        Some(Value::Object(countries)) => {
            let is_code = |code: &str| code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
            for (code, micros) in countries {
                if !is_code(code) || !is_amount(micros) {
                    let detail = "must be an amount in millionths by a country's two capital letters";
                    problems.push((format!("{at}.countries.{code}"), detail));
                }
            }
        }
        Some(_) => problems.push((format!("{at}.countries"), "must be an object of amounts by country")),
    }
}

fn is_amount(micros: &Value) -> bool {
    micros.as_f64().and_then(whole).is_some()
}

/// Beyond 9·10¹⁵ a number of JSON is not exact.
fn whole(micros: f64) -> Option<i64> {
    (0.0..=9.0e15).contains(&micros).then_some(micros.round() as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::Deduplication;

    fn price(model: &Value, channel: &str, number: &str) -> Option<(i64, String)> {
        let descriptor = Descriptor {
            name: String::new(),
            version: String::new(),
            summary: String::new(),
            channels: Vec::new(),
            config_schema: json!({}),
            secrets: Vec::new(),
            hosts: Vec::new(),
            deduplication: Deduplication::None,
            cost_model: model.clone(),
            max_batch: 1,
            ext: json!({}),
        };
        let price = Price::at(&descriptor, channel, Country::of_address(channel, number))?;
        Some((price.unit.micros, price.per))
    }

    #[test]
    fn the_nearest_price_counts() {
        let model = json!({"currency": "USD", "per": "segment", "micros": 7900, "countries": {"SE": 45000},
            "channels": {"mms": {"per": "message", "micros": 20000, "countries": {"US": 16000}}}});
        let found = |channel, number| price(&model, channel, number).unwrap();
        assert_eq!(found("sms", "+12025550123"), (7900, "segment".to_owned()));
        assert_eq!(found("sms", "+46701234567"), (45000, "segment".to_owned()));
        assert_eq!(found("mms", "+12025550123"), (16000, "message".to_owned()));
        assert_eq!(found("mms", "+46701234567"), (20000, "message".to_owned()));
        assert_eq!(price(&json!({}), "sms", "+46701234567"), None);
    }

    #[test]
    fn a_model_that_is_none_is_named() {
        let model = json!({"currency": "USD", "per": "segment", "micros": 1, "countries": {"Sweden": 1, "SE": -1},
            "channels": {"mms": {"micros": "much", "countries": 7}}});
        let found: Vec<_> = problems(model.as_object().unwrap()).into_iter().map(|(at, _)| at).collect();
        assert_eq!(
            found,
            [
                "cost_model.countries.SE",
                "cost_model.countries.Sweden",
                "cost_model.channels.mms.micros",
                "cost_model.channels.mms.countries"
            ]
        );
    }
}
