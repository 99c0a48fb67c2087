//! What can be an address, whoever says it: a client, or a script whose message follows another.

/// The longest address, in characters.
const MAX_ADDRESS: usize = 2048;

/// Whether a message by this channel needs an address; by others the connection's config may have it.
#[must_use]
pub fn is_needed(channel: &str) -> bool {
    matches!(channel, "email" | "sms" | "mms" | "whatsapp")
}

/// What is wrong with an address: a code, and what it is or has.
#[must_use]
pub fn fault(address: &str, mail: bool) -> Option<(&'static str, &'static str)> {
    if address.is_empty() {
        Some(("empty", "has no address"))
    } else if address.chars().count() > MAX_ADDRESS {
        Some(("too_long", "must have at most 2048 characters"))
    } else if address.chars().any(char::is_control) {
        Some(("control_character", "has a control character, such as a line break"))
    } else if mail && !is_mailbox(address) {
        Some(("wrong_format", "is no mail address of the form `local@domain`; a name goes into `name`"))
    } else {
        None
    }
}

/// Enough of an address for the envelope to be unambiguous; whether it exists, its server says.
fn is_mailbox(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let fits = (1..=64).contains(&local.len()) && (1..=255).contains(&domain.len());
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"<>()[]:;,\\\"@".contains(c);
    let literal = domain.starts_with('[') && domain.ends_with(']');
    fits && local.chars().all(plain)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..")
        && (literal && !domain.contains(|c: char| c.is_whitespace() || "<>,;\\\"".contains(c))
            || domain.chars().all(plain) && domain.split('.').all(|label| !label.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_address_is_one_address() {
        for good in ["ann@example.org", "a+b@x", "ü@bücher.example", "root@[127.0.0.1]"] {
            assert!(is_mailbox(good), "{good}");
        }
        for wrong in ["", "ann", "@x", "a@", "a b@x", "Ann <a@x>", "a@x,b@x", "a@b@c", "a@x..y", ".a@x", "a@x>"] {
            assert!(!is_mailbox(wrong), "{wrong}");
        }
    }
}
