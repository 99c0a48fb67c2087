//! Media types with their parameters (RFC 2045, 5.1), as attachments have them.

use std::fmt;

/// The longest, in bytes: it must fit in one line of a header.
pub const MAX_MEDIA_TYPE: usize = 255;

/// The longest line that may stand in a mail unencoded, in bytes (RFC 5322, 2.1.1).
const LONGEST_LINE: usize = 998;

/// A media type: `text/calendar; method=REQUEST; charset=UTF-8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaType {
    kind: String,
    subtype: String,
    /// Names in lower case, values as they were given, without quotes.
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Parses a media type; `None` if it is invalid, or longer than [`MAX_MEDIA_TYPE`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_MEDIA_TYPE {
            return None;
        }
        let (essence, rest) = text.split_at(text.find(';').unwrap_or(text.len()));
        let (kind, subtype) = essence.trim().split_once('/')?;
        let parameters = parameters(rest)?;
        (is_token(kind) && is_token(subtype)).then(|| Self {
            kind: kind.to_ascii_lowercase(),
            subtype: subtype.to_ascii_lowercase(),
            parameters,
        })
    }

    /// Whether its content may not be encoded in a mail (RFC 2046, 5.1 and 5.2): a mail, or a part with parts.
    #[must_use]
    pub fn is_composite(&self) -> bool {
        matches!(self.kind.as_str(), "message" | "multipart")
    }

    /// Whether this content can be in a mail unencoded: US-ASCII in short lines, and a content with parts states their
    /// boundary.
    #[must_use]
    pub fn may_stand_unencoded(&self, content: &[u8]) -> bool {
        let parted = self.kind != "multipart" || self.parameters.iter().any(|(name, _)| name == "boundary");
        let plain = content.iter().all(|byte| byte.is_ascii() && *byte != 0);
        let short = content.split(|byte| b"\r\n".contains(byte)).all(|line| line.len() <= LONGEST_LINE);
        parted && plain && short
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.subtype)?;
        for (name, value) in &self.parameters {
            if is_token(value) {
                write!(f, "; {name}={value}")?;
            } else {
                write!(f, "; {name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))?;
            }
        }
        Ok(())
    }
}

/// Parses `; name=value; name="value"`, with spaces around each; `None` if it has another form, or names one twice.
fn parameters(mut rest: &str) -> Option<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(found);
        }
        rest = rest.strip_prefix(';')?.trim_start_matches([' ', '\t']);
        // A semicolon at the end is no parameter, and is seen often.
        if rest.is_empty() {
            return Some(found);
        }
        let (name, behind) = rest.split_once('=')?;
        let name = name.trim_end_matches([' ', '\t']).to_ascii_lowercase();
        let (value, behind) = value(behind.trim_start_matches([' ', '\t']))?;
        if !is_token(&name) || found.iter().any(|(known, _)| *known == name) {
            return None;
        }
        found.push((name, value));
        rest = behind;
    }
}

/// Reads a token, or a quoted text, and returns the rest.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (token, behind) = text.split_at(end);
        return is_token(token).then(|| (token.to_owned(), behind));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next().map(|(_, c)| c).filter(|c| is_text(*c))?),
            c if is_text(c) => value.push(c),
            _ => return None,
        }
    }
    None
}

const fn is_text(c: char) -> bool {
    c.is_ascii_graphic() || c == ' '
}

/// RFC 2045, 5.1.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_kept_and_written_in_one_way() {
        for (given, written) in [
            ("Image/PNG", "image/png"),
            ("text/calendar; method=REQUEST; charset=UTF-8", "text/calendar; method=REQUEST; charset=UTF-8"),
            ("text/csv;charset=windows-1252", "text/csv; charset=windows-1252"),
            ("text/plain; CHARSET = \"utf-8\" ;", "text/plain; charset=utf-8"),
            ("application/x; name=\"a \\\"b\\\"; c.txt\"", "application/x; name=\"a \\\"b\\\"; c.txt\""),
            (
                "application/pdf; name*=UTF-8''r%C3%A9sum%C3%A9.pdf",
                "application/pdf; name*=UTF-8''r%C3%A9sum%C3%A9.pdf",
            ),
            ("application/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.text"),
        ] {
            assert_eq!(MediaType::parse(given).map(|it| it.to_string()).as_deref(), Some(written), "{given}");
        }
        let long = format!("text/plain; x={}", "y".repeat(300));
        for wrong in [
            "",
            "text",
            "a/b/c",
            "x y/z",
            "text/plain\r\nX: y",
            "text/plain; a=b\r\nX: y",
            "text/plain; a=\"b\r\nX: y\"",
            "text/plain; a",
            "text/plain; a=",
            "text/plain; a=b; A=c",
            "text/plain; a=\"b",
            "text/plain; a=é",
            &long,
        ] {
            assert_eq!(MediaType::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_mail_in_a_mail_stands_as_it_is_or_not_at_all() {
        let mail = MediaType::parse("message/rfc822").unwrap();
        assert!(mail.is_composite() && mail.may_stand_unencoded(b"Subject: x\r\n\r\nHi\r\n"));
        assert!(!mail.may_stand_unencoded("Subject: \u{e9}\r\n".as_bytes()));
        assert!(!mail.may_stand_unencoded(&[b'x'; 999]));
        let parted = |text| MediaType::parse(text).unwrap().may_stand_unencoded(b"--x--");
        assert!(parted("multipart/mixed; boundary=x") && !parted("multipart/mixed"));
        assert!(!MediaType::parse("text/calendar").unwrap().is_composite());
    }
}
