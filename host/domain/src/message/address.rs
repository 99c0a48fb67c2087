//! The syntax of addresses, for clients and for scripts that send follow-ups.

use std::borrow::Cow;

pub use angarium_address::{is_e164, is_mailbox, is_sms_sender};

/// The longest address, in characters.
const MAX_ADDRESS: usize = 2048;

/// Whether a message by this channel needs an address; by others the connection's config may have it.
#[must_use]
pub fn is_needed(channel: &str) -> bool {
    matches!(channel, "email" | "sms" | "mms" | "whatsapp")
}

/// Returns the fault of an address: a code and the requirement.
#[must_use]
pub fn fault(address: &str, mail: bool) -> Option<(&'static str, &'static str)> {
    if address.is_empty() {
        Some(("empty", "must have an address"))
    } else if address.chars().count() > MAX_ADDRESS {
        Some(("too_long", "must have at most 2048 characters"))
    } else if address.chars().any(char::is_control) {
        Some(("control_character", "must have no control character, such as a line break"))
    } else if mail && !is_mailbox(address) {
        Some(("wrong_format", "must be an e-mail address such as `ann@example.org`; put a display name in `name`"))
    } else {
        None
    }
}

/// The form in which two addresses are compared: the domain of a mail address in lower case and in ASCII (IDNA), its
/// local part unchanged (RFC 5321, 2.4). Any other address stays as it is.
#[must_use]
pub fn comparable(address: &str) -> Cow<'_, str> {
    match address.rsplit_once('@') {
        Some((local, domain)) if is_mailbox(address) => match ascii_domain(domain) {
            Some(domain) => format!("{local}@{domain}").into(),
            None => address.into(),
        },
        _ => address.into(),
    }
}

/// Whether two addresses are one mailbox.
#[must_use]
pub fn are_same(one: &str, other: &str) -> bool {
    one == other || comparable(one) == comparable(other)
}

/// The ways in which the domain of a mail address may be written, in lower case: in ASCII, and in its own letters.
#[must_use]
pub fn spellings(address: &str) -> Vec<String> {
    let ascii = comparable(address).into_owned();
    let own = ascii.rsplit_once('@').map(|(local, domain)| format!("{local}@{}", idna::domain_to_unicode(domain).0));
    own.filter(|own| *own != ascii).into_iter().chain([ascii.clone()]).collect()
}

/// Returns a domain in its form for an envelope; `None` if it has none. An address literal stays as it is.
#[must_use]
pub fn ascii_domain(domain: &str) -> Option<String> {
    if domain.starts_with('[') { Some(domain.to_ascii_lowercase()) } else { idna::domain_to_ascii(domain).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_compared_without_case_and_in_either_spelling() {
        for (one, other) in [
            ("ann@Example.ORG", "ann@example.org"),
            ("ann@bücher.example", "ann@xn--bcher-kva.example"),
            ("ann@BÜCHER.example", "ann@bücher.EXAMPLE"),
            ("+46701234567", "+46701234567"),
        ] {
            assert!(are_same(one, other), "{one} {other}");
        }
        for (one, other) in [("Ann@example.org", "ann@example.org"), ("https://x@y/A", "https://x@y/a")] {
            assert!(!are_same(one, other), "{one} {other}");
        }
        let spellings = spellings("ann@Bücher.example");
        assert_eq!(spellings, ["ann@bücher.example", "ann@xn--bcher-kva.example"]);
    }
}
