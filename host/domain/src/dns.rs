//! Names in the DNS.

/// Whether a text is a name in the DNS: labels of 1 to 63 ASCII letters, digits, inner hyphens and underscores, 253
/// characters in all (RFC 1035, 2.3.4; RFC 8552 for underscores). A name in Unicode has to come as `xn--…`.
#[must_use]
pub fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_holds_nothing_but_labels() {
        for name in ["example.org", "s1", "2024-05.eu", "a_b.c", "s1._domainkey", "xn--bcher-kva.example"] {
            assert!(is_dns_name(name), "{name}");
        }
        let (label, name) = ("a".repeat(64), "a.".repeat(127) + "a");
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a;d=b",
            "a\r\nb",
            "a\tb",
            "a=b",
            "bücher.example",
            "a:b",
            "a/b",
            &label,
            &name,
        ] {
            assert!(!is_dns_name(text), "{text:?}");
        }
    }
}
