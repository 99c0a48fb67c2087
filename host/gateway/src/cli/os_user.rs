//! The operating system's user of a command, for the audit.

use std::{env, fs, os::unix::fs::MetadataExt};

use angarium_domain::audit::Actor;

/// Returns the author of a command: the user that the process runs as, and with sudo the one that called it.
pub fn actor() -> Actor {
    let user = name().unwrap_or_else(|| "unknown".to_owned());
    match env::var("SUDO_USER").ok().filter(|caller| is_name(caller) && *caller != user) {
        Some(caller) => Actor::command_line(&format!("{caller} (as {user})")),
        None => Actor::command_line(&user),
    }
}

/// The name of the process's user; without a way to ask for it, the one of the environment.
fn name() -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = fs::metadata("/proc/self").ok().map(|process| process.uid());
    id.map(|id| named(&users, id).unwrap_or_else(|| format!("uid {id}")))
        .or_else(|| ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|name| is_name(name))))
}

/// The user with this id in the text of `/etc/passwd`.
fn named(users: &str, id: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut parts = line.split(':');
        let (name, number) = (parts.next()?, parts.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    })
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nangarium:x:998:998::/var/lib/angarium:/usr/sbin/nologin\n";
        assert_eq!(named(users, 998).as_deref(), Some("angarium"));
        assert_eq!(named(users, 1), None);
    }
}
