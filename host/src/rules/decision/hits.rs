//! The rules that hold of a message. Each message keeps its own list, so it is written down in few bytes: of each rule
//! the sixteen of its id and its confidence in ten thousandths, together as Base64 (RFC 4648, section 4, without
//! padding).

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::domain::ids::RuleId;

/// How many a decision lists; all are counted.
const MOST: usize = 100;
/// Bytes of a rule, as they are written down.
const LENGTH: usize = 18;
/// Steps of a confidence.
const STEPS: f64 = 10_000.0;

/// The rules that hold, those that count first come first; a hundred at most.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hits(Vec<Hit>);

/// A rule that holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    pub rule: RuleId,
    /// In 0..=1, of four digits.
    pub confidence: f64,
}

impl Hits {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn as_slice(&self) -> &[Hit] {
        &self.0
    }
}

impl FromIterator<Hit> for Hits {
    fn from_iter<T: IntoIterator<Item = Hit>>(hits: T) -> Self {
        Self(hits.into_iter().take(MOST).collect())
    }
}

impl Serialize for Hits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.0.len() * LENGTH);
        for hit in &self.0 {
            bytes.extend_from_slice(hit.rule.uuid().as_bytes());
            bytes.extend_from_slice(&((hit.confidence * STEPS).round() as u16).to_be_bytes());
        }
        serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Hits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(text).map_err(de::Error::custom)?;
        let (hits, rest) = bytes.as_chunks::<LENGTH>();
        if !rest.is_empty() {
            return Err(de::Error::custom("it ends within a rule"));
        }
        Ok(hits.iter().map(hit).collect())
    }
}

fn hit(bytes: &[u8; LENGTH]) -> Hit {
    let [id @ .., high, low] = bytes;
    Hit { rule: RuleId::from(Uuid::from_bytes(*id)), confidence: f64::from(u16::from_be_bytes([*high, *low])) / STEPS }
}
