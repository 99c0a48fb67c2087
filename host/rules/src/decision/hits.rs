//! The rules that hold for a message. Each message stores its own list, and the disk gets it several times: so the list
//! is short, with the end of each rule's id and its confidence in ten thousandths, together as Base64 (RFC 4648,
//! section 4, without padding). A rule's versions stay when it is deleted, so that the end identifies it.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use angarium_domain::ids::RuleId;

/// How many a decision lists; all are counted.
const MOST: usize = 100;
/// Bytes of a rule, as they are written down.
const LENGTH: usize = 8;
/// Steps of a confidence.
const STEPS: f64 = 10_000.0;

/// The rules that hold, those that count first come first; a hundred at most.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hits(Vec<Hit>);

/// A rule that holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    pub rule: Ending,
    /// In 0..=1, of four digits.
    pub confidence: f64,
}

/// The last six bytes of a rule's id, of which at least four are random (RFC 9562, section 5.7): of a tenant's ten
/// thousand rules no two share them, except once in millions of tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending([u8; 6]);

impl From<RuleId> for Ending {
    fn from(rule: RuleId) -> Self {
        let [.., a, b, c, d, e, f] = rule.uuid().into_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl Ending {
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// For readers.
#[derive(Debug, PartialEq, Serialize)]
pub struct SpelledOut {
    /// `None` where no version of it is there any more.
    pub rule: Option<RuleId>,
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

    /// By their ids, which are among these.
    #[must_use]
    pub fn spelled_out(&self, rules: &[RuleId]) -> Vec<SpelledOut> {
        let id = |ending| rules.iter().copied().find(|&rule| Ending::from(rule) == ending);
        self.0.iter().map(|hit| SpelledOut { rule: id(hit.rule), confidence: hit.confidence }).collect()
    }
}

impl FromIterator<Hit> for Hits {
    fn from_iter<T: IntoIterator<Item = Hit>>(hits: T) -> Self {
        Self(hits.into_iter().take(MOST).collect())
    }
}

impl Serialize for Hits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = [0; MOST * LENGTH];
        let (places, _) = bytes.as_chunks_mut::<LENGTH>();
        for (place, hit) in places.iter_mut().zip(&self.0) {
            let (rule, confidence) = place.split_at_mut(hit.rule.0.len());
            rule.copy_from_slice(&hit.rule.0);
            confidence.copy_from_slice(&((hit.confidence * STEPS).round() as u16).to_be_bytes());
        }
        serializer.serialize_str(&STANDARD_NO_PAD.encode(&bytes[..self.0.len() * LENGTH]))
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
    let [rule @ .., high, low] = bytes;
    Hit { rule: Ending(*rule), confidence: f64::from(u16::from_be_bytes([*high, *low])) / STEPS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_spelled_out_again() {
        let rules: Vec<RuleId> = (0..3).map(|_| RuleId::new()).collect();
        let hits: Hits = rules.iter().map(|&rule| Hit { rule: rule.into(), confidence: 0.7719 }).collect();
        let written = serde_json::to_string(&hits).unwrap();
        assert_eq!(written.len(), 34, "{written}");
        let read: Hits = serde_json::from_str(&written).unwrap();
        let out: Vec<_> = read.spelled_out(&rules[1..]).into_iter().map(|it| (it.rule, it.confidence)).collect();
        assert_eq!(out, [(None, 0.7719), (Some(rules[1]), 0.7719), (Some(rules[2]), 0.7719)]);
    }

    #[test]
    fn a_hundred_are_listed() {
        let hits: Hits = (0..200).map(|_| Hit { rule: RuleId::new().into(), confidence: 1.0 }).collect();
        let read: Hits = serde_json::from_str(&serde_json::to_string(&hits).unwrap()).unwrap();
        assert_eq!((read.as_slice().len(), &read), (MOST, &hits));
        assert!(serde_json::from_str::<Hits>("\"AAAA\"").is_err(), "it ends within a rule");
    }
}
