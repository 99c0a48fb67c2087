//! The syntax of addresses: one rule each for the gateway's API, its transport and the providers.
//!
//! The gateway and the components are built in different workspaces; both link with this crate, so that the API and the
//! providers accept the same addresses. It examines texts alone and must not depend on anything.

/// The longest mail address, in bytes: a path of SMTP has at most 256, two of them brackets (RFC 5321, 4.5.3.1.3).
pub const MAX_MAILBOX: usize = 254;
/// The longest part of a mail address before the `@`, in bytes (RFC 5321, 4.5.3.1.1).
pub const MAX_LOCAL: usize = 64;
/// The longest label of a domain, in bytes (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// Whether a text is one mail address, `local@domain`, that is safe in an envelope and in a header.
///
/// Quoted local parts and comments are refused: each is a way to smuggle a second address, and no mailbox is reachable
/// by them alone. Letters outside ASCII are allowed on both sides (RFC 6531).
#[must_use]
pub fn is_mailbox(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    text.len() <= MAX_MAILBOX && is_local(local) && (is_domain(domain) || is_literal(domain))
}

/// Whether a text is a telephone number in international form: a plus sign, then 7 to 15 digits, the first not a zero
/// (ITU-T E.164).
#[must_use]
pub fn is_e164(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (7..=15).contains(&digits.len())
            && !digits.starts_with('0')
            && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// Whether a text can be the sender of a text message: a number in international form, a short code of 3 to 8 digits, or
/// up to 11 letters, digits and `+-_&` or spaces with at least one letter.
#[must_use]
pub fn is_sms_sender(text: &str) -> bool {
    let is_short_code = (3..=8).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
    let is_name = (1..=11).contains(&text.len())
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" +-_&".contains(&byte));
    is_e164(text) || is_short_code || is_name
}

/// Returns the domain of a mail address; the whole text if it has no `@`.
#[must_use]
pub fn domain_of(mailbox: &str) -> &str {
    mailbox.rsplit_once('@').map_or(mailbox, |(_, domain)| domain)
}

/// Whether two mail addresses are one mailbox: their domains are compared without case, the parts before the `@` with
/// it (RFC 5321, 2.4). An international domain has one spelling here; the gateway knows both.
#[must_use]
pub fn are_same(one: &str, other: &str) -> bool {
    match (one.rsplit_once('@'), other.rsplit_once('@')) {
        (Some((local, domain)), Some((other_local, other_domain))) => {
            local == other_local && domain.eq_ignore_ascii_case(other_domain)
        }
        _ => one == other,
    }
}

fn is_local(local: &str) -> bool {
    (1..=MAX_LOCAL).contains(&local.len())
        && local.chars().all(is_plain)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..")
}

fn is_domain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c) || (!c.is_ascii() && is_plain(c)))
    })
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321, 4.1.3).
fn is_literal(domain: &str) -> bool {
    let Some(inner) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return false };
    match inner.strip_prefix("IPv6:") {
        Some(address) => address.parse::<core::net::Ipv6Addr>().is_ok(),
        None => inner.parse::<core::net::Ipv4Addr>().is_ok(),
    }
}

/// A character that means nothing in an envelope or a header. Invisible ones could make two addresses look alike.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !is_invisible(c) && !"<>()[]\\,;:@\"".contains(c)
}

/// Spaces without width, and marks that turn the direction of writing.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_is_one_address() {
        let local = "a".repeat(64);
        for good in [
            "ann@example.org",
            "a+b.c@x-y.example",
            "jürgen@bücher.example",
            "root@localhost",
            "root@[127.0.0.1]",
            "root@[IPv6:::1]",
            "o'neil@e.org",
            "a_b@x_y.example",
            "用户@例子.example",
            &format!("{local}@example.org"),
        ] {
            assert!(is_mailbox(good), "{good}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        let (local, label) = ("a".repeat(65), "a".repeat(64));
        let long = format!("a@{}org", "abcdefgh.".repeat(28));
        for wrong in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@.org",
            "ann@example..org",
            "ann@example.org.",
            "ann@-x.org",
            "ann@x-.org",
            ".ann@example.org",
            "ann.@example.org",
            "an..n@example.org",
            "a b@example.org",
            "<ann@example.org>",
            "Ann <ann@example.org>",
            "ann@example.org,eve@example.org",
            "ann@example.org>",
            "\"a b\"@example.org",
            "a@b@example.org",
            "ann@[eve@example.org]",
            "ann@[127.0.0.1]x",
            "ann@example.org\r\nRCPT TO:<eve@example.org>",
            "ann@exam\u{200b}ple.org",
            "ann\u{202e}@example.org",
            "ann@example.org?subject=x",
            &format!("{local}@example.org"),
            &format!("ann@{label}.org"),
            &long,
        ] {
            assert!(!is_mailbox(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_number_is_international() {
        for good in ["+4670123", "+14155550123", "+123456789012345"] {
            assert!(is_e164(good), "{good}");
        }
        for wrong in
            ["", "+", "14155550123", "+0701234567", "+123456", "+1234567890123456", "+1 415 555", "+1415555012a"]
        {
            assert!(!is_e164(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_sender_is_a_number_a_short_code_or_a_name() {
        for good in ["+14155550123", "12345", "Shop", "A&B Shop-1"] {
            assert!(is_sms_sender(good), "{good}");
        }
        for wrong in ["", "12", "123456789", "Longer Names", "Blåbär", "a@b"] {
            assert!(!is_sms_sender(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_domain_stands_behind_the_last_at() {
        assert_eq!(domain_of("ann@example.org"), "example.org");
        assert_eq!(domain_of("ann"), "ann");
        assert!(are_same("ann@Example.org", "ann@example.ORG"));
        assert!(!are_same("Ann@example.org", "ann@example.org"));
    }
}
