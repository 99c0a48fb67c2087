//! Addresses that are safe to write into an envelope and a header.

use angarium_provider::{Address, Outcome, code};

/// The path of an address in SMTP has at most 256 octets, two of them brackets (RFC 5321, 4.5.3.1.3).
const MAX_ADDRESS: usize = 254;

/// Checks each address and the name beside it; `field` is named in the outcome.
pub fn check_all(addresses: &[Address], field: &str) -> Result<(), Outcome> {
    addresses.iter().try_for_each(|address| check(address, field))
}

/// As [`check_all`], for one.
pub fn check(address: &Address, field: &str) -> Result<(), Outcome> {
    check_no_control(&address.value, field)?;
    check_no_control(address.name.as_deref().unwrap_or_default(), field)?;
    if is_mailbox(&address.value) {
        return Ok(());
    }
    let message = format!("`{field}` holds `{}`, which is not a mail address", address.value);
    Err(Outcome::rejected_permanent(
        if is_sender(field) { code::INVALID_CONTENT } else { code::INVALID_RECIPIENT },
        message,
    ))
}

/// Refuses what could begin a new header or command.
pub fn check_no_control(text: &str, field: &str) -> Result<(), Outcome> {
    if text.chars().any(char::is_control) {
        let message = format!("`{field}` holds a line break or another control character");
        return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, message));
    }
    Ok(())
}

/// The domain of a checked address.
pub fn domain(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, domain)| domain)
}

fn is_sender(field: &str) -> bool {
    !matches!(field, "to" | "cc" | "bcc")
}

/// `local@domain` without quoting, comments or address literals: none of them is seen in the
/// wild, and each is a way to smuggle a second address.
fn is_mailbox(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_plain =
        |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || "<>()[]\\,;:@\"".contains(c));
    address.len() <= MAX_ADDRESS
        && is_plain(local)
        && is_plain(domain)
        && domain.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

#[cfg(test)]
mod tests {
    use super::is_mailbox;

    #[test]
    fn plain_mailboxes_pass() {
        for address in
            ["ann@example.org", "a+b.c@x-y.example", "jürgen@bücher.example", "root@localhost", "o'neil@e.org"]
        {
            assert!(is_mailbox(address), "{address}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("{}@example.org", "a".repeat(250));
        for address in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@.org",
            "ann@example..org",
            "ann@-x.org",
            "a b@example.org",
            "<ann@example.org>",
            "ann@example.org,eve@example.org",
            "ann@example.org>",
            "\"a b\"@example.org",
            "a@b@example.org",
            "ann@[127.0.0.1]",
            &long,
        ] {
            assert!(!is_mailbox(address), "{address}");
        }
    }
}
