//! Hides secrets in texts of others, however they are written there. Pure.
//!
//! The other side of a request, a provider's component and a caller may repeat a secret in plain form, escaped (for
//! JSON, for a URL, for HTML, for a mail), or in base64 or hex. Each occurrence is replaced by `***`. A secret shorter
//! than [`SHORTEST`] bytes is not looked for, because it would match unrelated text. Neither is a part of a secret, or
//! one that was compressed, encrypted or reversed.

mod view;

use std::{borrow::Cow, fmt, ops::Range};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use memchr::memmem;
use zeroize::Zeroizing;

use self::view::View;

/// The text in place of a secret.
pub const HIDDEN: &str = "***";
/// The fewest bytes of a secret that are looked for.
pub const SHORTEST: usize = 6;
/// The kinds of escapes that are decoded together: each on its own, since a secret may hold what looks like another
/// kind, and those that are laid over one another.
const KINDS: [&[u8]; 5] = [b"\\", b"%", b"&", b"=", b"\\%&"];
/// How often escapes may be escaped.
const DEPTH: usize = 3;
/// In a text of more bytes, escapes are decoded once.
const LARGE: usize = 64 << 10;

/// The secrets that are hidden, in all forms that they are looked for in.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Redactor(Vec<Needle>);

#[derive(Clone, PartialEq, Eq)]
struct Needle {
    bytes: Zeroizing<Vec<u8>>,
    /// Whether the characters around it may hold some of its bits.
    base64: bool,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(***)")
    }
}

impl Redactor {
    /// A redactor for these values.
    #[must_use]
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut needles = Vec::new();
        for value in values {
            let value = value.trim_ascii();
            if value.len() >= SHORTEST {
                forms(value, &mut needles);
            }
        }
        Self(needles)
    }

    /// Whether nothing is looked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Hides the secrets in a text.
    pub fn redact(&self, text: &mut String) {
        if let Cow::Owned(clean) = self.redacted(text.as_bytes()) {
            *text = String::from_utf8_lossy(&clean).into_owned();
        }
    }

    /// The bytes without the secrets; borrowed where there is none in them.
    #[must_use]
    pub fn redacted<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let places = self.places(bytes);
        if places.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut from = 0;
        for place in places {
            out.extend_from_slice(&bytes[from..place.start]);
            out.extend_from_slice(HIDDEN.as_bytes());
            from = place.end;
        }
        out.extend_from_slice(&bytes[from..]);
        Cow::Owned(out)
    }

    /// Returns the positions of secrets, in order and without overlap.
    fn places(&self, text: &[u8]) -> Vec<Range<usize>> {
        if self.is_empty() || text.len() < SHORTEST {
            return Vec::new();
        }
        let mut found = Vec::new();
        self.find(text, |range| found.push(range));
        if let Some(view) = View::unwrapped(text) {
            self.find(&view.bytes, |range| found.push(view.place(&range)));
        }
        for kinds in KINDS {
            self.find_decoded(text, kinds, &mut found);
        }
        merged(found)
    }

    /// Decodes a text again and again, and finds the secrets in each of its views.
    fn find_decoded(&self, text: &[u8], kinds: &[u8], found: &mut Vec<Range<usize>>) {
        let mut view = View::decoded(text, kinds);
        for _ in 0..if text.len() > LARGE { 1 } else { DEPTH } {
            let Some(seen) = view else { break };
            self.find(&seen.bytes, |range| found.push(seen.place(&range)));
            if let Some(unwrapped) = View::unwrapped(&seen.bytes) {
                let unwrapped = seen.of(unwrapped);
                self.find(&unwrapped.bytes, |range| found.push(unwrapped.place(&range)));
            }
            view = View::decoded(&seen.bytes, kinds).map(|inner| seen.of(inner));
        }
    }

    fn find(&self, text: &[u8], mut each: impl FnMut(Range<usize>)) {
        for needle in &self.0 {
            for at in memmem::find_iter(text, &needle.bytes) {
                let found = at..at + needle.bytes.len();
                each(if needle.base64 { widened(text, found) } else { found });
            }
        }
    }
}

/// The forms that a value is looked for in, after escapes are decoded.
fn forms(value: &[u8], needles: &mut Vec<Needle>) {
    let mut add = |bytes: Vec<u8>, base64: bool| {
        let needle = Needle { bytes: Zeroizing::new(bytes), base64 };
        if needle.bytes.len() >= SHORTEST && !needles.contains(&needle) {
            needles.push(needle);
        }
    };
    add(value.to_vec(), false);
    // A form has `+` for a space.
    if value.contains(&b' ') {
        add(value.iter().map(|byte| if *byte == b' ' { b'+' } else { *byte }).collect(), false);
    }
    // An escape-like sequence in the value itself is decoded with the text around it.
    if let Some(view) = View::decoded(value, b"\\%&") {
        add(view.bytes, false);
    }
    // In a header's name, which is in lower case.
    add(value.to_ascii_lowercase(), false);
    add(hex::encode(value).into_bytes(), false);
    add(hex::encode_upper(value).into_bytes(), false);
    for before in 0..3 {
        add(whole_characters(&STANDARD_NO_PAD, value, before), true);
        add(whole_characters(&URL_SAFE_NO_PAD, value, before), true);
    }
}

/// Returns the characters of base64 that the value alone decides, for this number of bytes before it.
fn whole_characters(engine: &impl Engine, value: &[u8], before: usize) -> Vec<u8> {
    let padded = Zeroizing::new([&[0; 3][..before], value].concat());
    let text = Zeroizing::new(engine.encode(&*padded));
    let first = (before * 8).div_ceil(6);
    text.as_bytes()[first..padded.len() * 8 / 6].to_vec()
}

/// A place in base64 with the character on either side, which may hold bits of the value.
fn widened(text: &[u8], found: Range<usize>) -> Range<usize> {
    let is_character =
        |at: usize| text.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte));
    let start = if found.start > 0 && is_character(found.start - 1) { found.start - 1 } else { found.start };
    let end = if is_character(found.end) { found.end + 1 } else { found.end };
    start..end
}

fn merged(mut places: Vec<Range<usize>>) -> Vec<Range<usize>> {
    places.sort_unstable_by_key(|place| (place.start, place.end));
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(places.len());
    for place in places {
        match apart.last_mut() {
            Some(last) if place.start < last.end => last.end = last.end.max(place.end),
            _ => apart.push(place),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Every character that some encoding treats on its own.
    const SECRET: &str = "s3cr\"et/å+ =41%42&lt;\\n😀~?>";

    fn clean(secrets: &[&str], text: &str) -> String {
        let redactor = Redactor::of(secrets.iter().map(|secret| secret.as_bytes()));
        let mut text = text.to_owned();
        redactor.redact(&mut text);
        text
    }

    fn every_unit(secret: &str, write: impl Fn(u16) -> String) -> String {
        secret.encode_utf16().map(write).collect()
    }

    fn every_byte(secret: &str, write: impl Fn(u8) -> String) -> String {
        secret.bytes().map(write).collect()
    }

    /// A secret in the spellings that servers are known for.
    fn spellings(secret: &str) -> Vec<String> {
        let json = serde_json::to_string(secret).unwrap();
        let json = json[1..json.len() - 1].to_owned();
        let percent = every_byte(secret, |byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                char::from(byte).into()
            } else {
                format!("%{byte:02X}")
            }
        });
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let mut all = vec![
            secret.to_owned(),
            json.replace('/', "\\/"),
            json.replace('å', "\\u00E5"),
            every_unit(secret, |unit| format!("\\u{unit:04x}")),
            every_unit(secret, |unit| format!("\\u{unit:04X}")),
            every_byte(secret, |byte| format!("\\x{byte:02x}")),
            serde_json::to_string(&json).unwrap(),
            every_byte(secret, |byte| {
                if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02x}") }
            }),
            every_byte(secret, |byte| format!("%{byte:02x}")),
            every_byte(secret, |byte| format!("%25{byte:02X}")),
            every_byte(secret, |byte| format!("={byte:02X}")),
            every_byte(secret, |byte| format!("={byte:02X}=\r\n")),
            secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"),
            secret.chars().map(|c| format!("&#{};", u32::from(c))).collect(),
            secret.chars().map(|c| format!("&#x{:X};", u32::from(c))).collect(),
            hex::encode(secret),
            hex::encode_upper(secret),
            json,
            percent,
            form,
        ];
        for before in ["", "u", "us", "user:", "\0user\0"] {
            for after in ["", "x", "xy", "xyz"] {
                let text = format!("{before}{secret}{after}");
                all.extend([STANDARD.encode(&text), URL_SAFE_NO_PAD.encode(&text)]);
                all.push(STANDARD.encode(&text).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"));
                let wrapped: Vec<_> = STANDARD
                    .encode(&text)
                    .as_bytes()
                    .chunks(7)
                    .map(|it| String::from_utf8_lossy(it).into_owned())
                    .collect();
                all.extend([wrapped.join("\r\n"), wrapped.join("\\n"), wrapped.join("\n  ")]);
            }
        }
        all
    }

    #[test]
    fn a_secret_is_hidden_in_every_spelling() {
        for secret in [SECRET, "canary-7f3e9a", "hunter two", "abcdef", "p+q/r=s==", "%41%42%43", "\\u0041bcdefg"] {
            for spelling in spellings(secret) {
                let text = clean(&[secret], &format!("said <{spelling}> and more"));
                assert!(text.starts_with("said <") && text.ends_with("> and more"), "{spelling}: {text}");
                assert!(text.contains("***"), "{secret} stays in {spelling}");
                let rest = text.replace("***", "");
                assert!(rest.len() <= "said <> and more".len() + 24, "{secret} as {spelling}: {text}");
            }
        }
    }

    #[test]
    fn the_bits_beside_a_match_in_base64_go_too() {
        for before in ["", "a", "ab"] {
            let text = clean(&["\u{7f}secret\u{7f}"], &STANDARD.encode(format!("{before}\u{7f}secret\u{7f}zz")));
            assert!(text.trim_end_matches('=').len() <= 3 + 4, "{text}");
        }
    }

    #[test]
    fn short_secrets_and_common_words_are_left_alone() {
        assert_eq!(clean(&["1234", "", "     "], "code 1234"), "code 1234");
        assert_eq!(clean(&["abcdef"], "abcde f fedcba"), "abcde f fedcba");
        assert_eq!(clean(&[], "100% \\u0041"), "100% \\u0041");
        let text = b"nothing % to & see \\ here = ".as_slice();
        assert!(matches!(Redactor::of([b"canary".as_slice()]).redacted(text), Cow::Borrowed(_)));
    }

    #[test]
    fn several_secrets_and_overlaps_are_hidden_once() {
        assert_eq!(clean(&["secret-one", "one-two-three"], "a secret-one-two-three b secret-one"), "a *** b ***");
        assert_eq!(clean(&["aaaaaa"], "aaaaaaaaaaaa b"), "****** b");
    }

    #[test]
    fn a_trailing_line_break_of_a_secret_is_none_of_it() {
        assert_eq!(clean(&["canary-7f3e9a\n"], "got canary-7f3e9a."), "got ***.");
    }

    #[test]
    fn nothing_of_it_is_printed() {
        assert!(!format!("{:?}", Redactor::of([b"canary".as_slice()])).contains("canary"));
    }
}
