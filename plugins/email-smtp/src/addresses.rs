//! Addresses that are safe to write into an envelope and a header.

use angarium_provider::{Address, Outcome, address::is_mailbox, code};

/// Checks each address and the name beside it; `field` is named in the outcome.
pub fn check_all(addresses: &[Address], field: &str) -> Result<(), Outcome> {
    addresses.iter().try_for_each(|address| check(address, field))
}

/// Checks one address, as [`check_all`] does.
pub fn check(address: &Address, field: &str) -> Result<(), Outcome> {
    check_no_control(&address.value, field)?;
    check_no_control(address.name.as_deref().unwrap_or_default(), field)?;
    if is_mailbox(&address.value) {
        return Ok(());
    }
    let message = format!("`{field}` must be an e-mail address (got `{}`)", address.value);
    Err(Outcome::rejected_permanent(
        if is_sender(field) { code::INVALID_CONTENT } else { code::INVALID_RECIPIENT },
        message,
    ))
}

/// Refuses what could begin a new header or command.
pub fn check_no_control(text: &str, field: &str) -> Result<(), Outcome> {
    if text.chars().any(char::is_control) {
        let message = format!("`{field}` must have no control character, such as a line break");
        return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, message));
    }
    Ok(())
}

fn is_sender(field: &str) -> bool {
    !matches!(field, "to" | "cc" | "bcc")
}
