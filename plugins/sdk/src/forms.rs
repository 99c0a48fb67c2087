//! Form bodies and URLs, as far as a provider needs them.

/// Writes `application/x-www-form-urlencoded` (WHATWG URL, section 5.2).
pub fn form_encode<N: AsRef<str>, V: AsRef<str>>(fields: &[(N, V)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        if !form.is_empty() {
            form.push('&');
        }
        push_form_text(&mut form, name.as_ref());
        form.push('=');
        push_form_text(&mut form, value.as_ref());
    }
    form
}

fn push_form_text(form: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => form.push(char::from(byte)),
            b' ' => form.push('+'),
            _ => {
                form.push('%');
                form.push(char::from(HEX[usize::from(byte >> 4)]));
                form.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

/// The host in an `http` or `https` URL, without user, port or path; `None` if there is none.
///
/// For choosing and for messages; the gateway alone decides about allowed hosts.
#[must_use]
pub fn host_of_url(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host_and_port.strip_prefix('[') {
        Some(literal) => literal.split_once(']')?.0,
        None => host_and_port.split_once(':').map_or(host_and_port, |(host, _)| host),
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_escapes_everything_but_the_plain_characters() {
        let form = form_encode(&[("To", "+4670 1"), ("Body", "a&b=ü")]);
        assert_eq!(form, "To=%2B4670+1&Body=a%26b%3D%C3%BC");
    }

    #[test]
    fn a_host_is_found_behind_user_and_port() {
        assert_eq!(host_of_url("https://u:p@hooks.example.org:8443/x?y#z"), Some("hooks.example.org"));
        assert_eq!(host_of_url("http://[::1]:80/"), Some("::1"));
        assert_eq!(host_of_url("ftp://example.org"), None);
        assert_eq!(host_of_url("https:///path"), None);
        assert_eq!(host_of_url("mailto:ann@example.org"), None);
    }
}
