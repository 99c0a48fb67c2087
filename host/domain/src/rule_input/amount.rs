//! An amount of money, exactly.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Number, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, OneOfBuilder, RefOr, Schema, SchemaFormat, Type},
};

const MICROS: i64 = 1_000_000;
/// Whole numbers of a `f64` are exact below this.
const EXACT: i64 = 9_000_000_000_000_000;
/// The most that is taken: nine trillion of a unit.
const LARGEST: f64 = 9e18;

/// Why something is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a number or a decimal as text, such as `\"129.50\"`, with at most 6 digits after the point")]
pub struct InvalidAmount;

/// An amount in millionths of a currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

impl Amount {
    /// Less than any other, and more.
    pub const ENDS: (Self, Self) = (Self(i64::MIN), Self(i64::MAX));

    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// From a number or a text of JSON. A number that is not quite a decimal, as sums of floating
    /// point are, is rounded to the millionth; a text has to be exact.
    ///
    /// # Errors
    /// When it is neither, or too large.
    pub fn of_json(value: &Value) -> Result<Self, InvalidAmount> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => Self::of_number(number),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(InvalidAmount),
        }
    }

    fn of_number(number: &Number) -> Result<Self, InvalidAmount> {
        let rounded = || {
            let micros = number.as_f64()? * 1e6;
            (micros.abs() <= LARGEST).then_some(Self(micros.round() as i64))
        };
        number.to_string().parse::<Self>().or_else(|_| rounded().ok_or(InvalidAmount))
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let text = text.trim();
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
        let only_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !only_digits(whole) || !only_digits(part) || part.len() > 6 {
            return Err(InvalidAmount);
        }
        let part: i64 = format!("{part:0<6}").parse().map_err(|_| InvalidAmount)?;
        let whole: i64 = whole.parse().map_err(|_| InvalidAmount)?;
        let micros = whole.checked_mul(MICROS).and_then(|micros| micros.checked_add(part)).ok_or(InvalidAmount)?;
        Ok(Self(sign * micros))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (micros, unit) = (self.0.unsigned_abs(), MICROS.unsigned_abs());
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}", micros / unit)?;
        match micros % unit {
            0 => Ok(()),
            part => write!(f, ".{}", format!("{part:06}").trim_end_matches('0')),
        }
    }
}

/// A number where that is exact, else a text.
impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            micros if micros % MICROS == 0 => serializer.serialize_i64(micros / MICROS),
            micros if micros.unsigned_abs() < EXACT.unsigned_abs() => {
                serializer.serialize_f64(micros as f64 / MICROS as f64)
            }
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of_json(&Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl ToSchema for Amount {}

impl PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new()
            .schema_type(Type::Number)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Double)))
            .minimum(Some(-9e12))
            .maximum(Some(9e12));
        let decimal = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(r"^\s*-?[0-9]{1,12}(\.[0-9]{1,6})?\s*$"))
            .examples(["129.50"]);
        let either = OneOfBuilder::new().item(number).item(decimal);
        either.description(Some("A number, or a decimal as text, with at most 6 digits after the point.")).into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_decimals_are_amounts() {
        for (given, shown) in [
            (json!(12), "12"),
            (json!(12.5), "12.5"),
            (json!("129.50"), "129.5"),
            (json!("-0.000001"), "-0.000001"),
            (json!(0.1 + 0.2), "0.3"),
            (json!(1e9), "1000000000"),
            (json!(9_000_000_000_000_i64), "9000000000000"),
            (json!(123_456_789_012.345_67), "123456789012.34567"),
        ] {
            let amount = Amount::of_json(&given).unwrap();
            assert_eq!(amount.to_string(), shown);
            let written = serde_json::to_value(amount).unwrap();
            assert_eq!(serde_json::from_value::<Amount>(written).unwrap(), amount, "{given}");
        }
        for bad in [json!("12,50"), json!("1.0000001"), json!(""), json!("."), json!("1."), json!(1e30), json!(null)] {
            assert_eq!(Amount::of_json(&bad), Err(InvalidAmount), "{bad}");
        }
    }
}
