//! W3C Trace Context: which trace a request belongs to, as it came in and as it goes on.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest `tracestate` that is kept, in bytes; the specification asks for no more.
const MOST_STATE_BYTES: usize = 512;
/// The most members of a `tracestate`.
const MOST_STATE_MEMBERS: usize = 32;
/// The flags that are known: sampled, and that the trace's id is random.
const KNOWN_FLAGS: u8 = 0b11;

/// A position in a trace: the parent of the next span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct TraceContext {
    pub trace: u128,
    pub span: u64,
    pub flags: u8,
    /// Data that other systems on the path want passed on: `tracestate`.
    pub state: Option<Arc<str>>,
}

impl TraceContext {
    /// Reads the two headers. A `traceparent` that is none counts as absent; so does a
    /// `tracestate`.
    #[must_use]
    pub fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let (version, rest) = parent.split_once('-')?;
        let version = hex(version, 2)?;
        // A later version may have more fields behind the four that are known.
        let fields: Vec<&str> = rest.splitn(4, '-').collect();
        let [trace, span, flags, ..] = fields[..] else { return None };
        let is_known = version == 0 && fields.len() == 3;
        let is_later = (1..0xff).contains(&version);
        let context = Self {
            trace: hex(trace, 32)?,
            span: u64::try_from(hex(span, 16)?).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()? & KNOWN_FLAGS,
            state: state.filter(|state| is_state(state)).map(Arc::from),
        };
        ((is_known || is_later) && context.trace != 0 && context.span != 0).then_some(context)
    }

    /// Whether the creator of the trace wants it recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

/// The header `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Parses this number of lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && lower).then(|| u128::from_str_radix(text, 16).ok())?
}

fn is_state(text: &str) -> bool {
    let members = || text.split(',').map(str::trim).filter(|member| !member.is_empty());
    (1..=MOST_STATE_BYTES).contains(&text.len())
        && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && (1..=MOST_STATE_MEMBERS).contains(&members().count())
        && members().all(|member| member.find('=').is_some_and(|at| at > 0))
}

/// The stored form beside a message.
#[derive(Serialize, Deserialize)]
struct Stored {
    parent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
}

impl From<TraceContext> for Stored {
    fn from(context: TraceContext) -> Self {
        Self { parent: context.to_string(), state: context.state.map(|state| state.as_ref().to_owned()) }
    }
}

impl TryFrom<Stored> for TraceContext {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        Self::parse(&stored.parent, stored.state.as_deref()).ok_or("no place in a trace")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_survives_its_headers_and_its_stored_form() {
        let context = TraceContext::parse(PARENT, Some("congo=t61rcWkgMzE,rojo=00f067")).unwrap();
        assert_eq!(context.to_string(), PARENT);
        assert!(context.is_sampled());
        let stored = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<TraceContext>(&stored).unwrap(), context);
    }

    #[test]
    fn what_is_no_traceparent_counts_as_absent() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad, None), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = PARENT.replacen("00-", "cc-", 1).replace("-01", "-ff-what-the-future-brings");
        let context = TraceContext::parse(&later, None).unwrap();
        assert_eq!(context.to_string(), PARENT.replace("-01", "-03"));
    }

    #[test]
    fn a_tracestate_that_is_none_is_left_out() {
        let long = format!("a={}", "x".repeat(MOST_STATE_BYTES));
        let many = vec!["a=1"; MOST_STATE_MEMBERS + 1].join(",");
        for bad in ["", "no member", "=1", "a=1\r\nevil: 1", &long, &many] {
            assert_eq!(TraceContext::parse(PARENT, Some(bad)).unwrap().state, None, "{bad}");
        }
    }
}
