//! A text as its reader decodes it, with where each byte of it stood. Pure.

use std::ops::Range;

/// Decoded bytes, and for each of them the position of its spelling in the original text.
pub(super) struct View {
    pub(super) bytes: Vec<u8>,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl View {
    /// The text with its escapes decoded, of the kinds that begin with these characters: `\` as in JSON and C, `%` as
    /// in URLs, `&` as in HTML, `=` as in mail. `None` if there is none.
    pub(super) fn decoded(text: &[u8], kinds: &[u8]) -> Option<Self> {
        let first = kinds.iter().filter_map(|kind| memchr::memchr(*kind, text)).min()?;
        let mut view = Self::with_room(text.len());
        (0..first).for_each(|at| view.push(text[at], at, at + 1));
        let (mut at, mut changed) = (first, false);
        while at < text.len() {
            let escape = if kinds.contains(&text[at]) { escape(&text[at..]) } else { None };
            match escape {
                Some(Escape { bytes, length, spelled }) => {
                    bytes[..length].iter().for_each(|byte| view.push(*byte, at, at + spelled));
                    at += spelled;
                    changed = true;
                }
                None => {
                    view.push(text[at], at, at + 1);
                    at += 1;
                }
            }
        }
        changed.then_some(view)
    }

    /// The text without white space, as a wrapped line of base64 or hex is read. `None` if it has no line break.
    pub(super) fn unwrapped(text: &[u8]) -> Option<Self> {
        memchr::memchr2(b'\r', b'\n', text)?;
        let mut view = Self::with_room(text.len());
        for (at, byte) in text.iter().enumerate().filter(|(_, byte)| !byte.is_ascii_whitespace()) {
            view.push(*byte, at, at + 1);
        }
        Some(view)
    }

    /// A view of this view's bytes, as a view of the text that this one was made of.
    pub(super) fn of(&self, inner: Self) -> Self {
        let starts = inner.starts.iter().map(|at| self.starts[*at as usize]).collect();
        let ends = inner.ends.iter().map(|at| self.ends[*at as usize - 1]).collect();
        Self { bytes: inner.bytes, starts, ends }
    }

    /// Returns the position of the whole spelling of these bytes, which are at least one.
    pub(super) fn place(&self, range: &Range<usize>) -> Range<usize> {
        self.starts[range.start] as usize..self.ends[range.end - 1] as usize
    }

    fn with_room(length: usize) -> Self {
        let places = || Vec::with_capacity(length);
        Self { bytes: Vec::with_capacity(length), starts: places(), ends: places() }
    }

    fn push(&mut self, byte: u8, start: usize, end: usize) {
        self.bytes.push(byte);
        self.starts.push(start as u32);
        self.ends.push(end as u32);
    }
}

/// The meaning of an escape: the first `length` of the bytes, and the number of bytes that spell it.
struct Escape {
    bytes: [u8; 4],
    length: usize,
    spelled: usize,
}

impl Escape {
    fn byte(byte: u8, spelled: usize) -> Self {
        Self { bytes: [byte, 0, 0, 0], length: 1, spelled }
    }

    fn char(code: u32, spelled: usize) -> Option<Self> {
        let mut bytes = [0; 4];
        let length = char::from_u32(code)?.encode_utf8(&mut bytes).len();
        Some(Self { bytes, length, spelled })
    }

    /// Nothing: the spelling only breaks a line.
    const fn nothing(spelled: usize) -> Self {
        Self { bytes: [0; 4], length: 0, spelled }
    }
}

fn escape(text: &[u8]) -> Option<Escape> {
    match text {
        [b'%', a, b, ..] => Some(Escape::byte(hex_byte(*a, *b)?, 3)),
        [b'=', b'\r', b'\n', ..] => Some(Escape::nothing(3)),
        [b'=', b'\n', ..] => Some(Escape::nothing(2)),
        [b'=', a, b, ..] => Some(Escape::byte(hex_byte(*a, *b)?, 3)),
        [b'\\', b'u', rest @ ..] => code_unit(rest),
        [b'\\', b'x', a, b, ..] => Some(Escape::byte(hex_byte(*a, *b)?, 4)),
        [b'\\', letter, ..] => Some(Escape::byte(short_escape(*letter)?, 2)),
        [b'&', rest @ ..] => reference(rest),
        _ => None,
    }
}

fn short_escape(letter: u8) -> Option<u8> {
    Some(match letter {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'f' => 12,
        b'"' | b'\'' | b'/' | b'\\' => letter,
        _ => return None,
    })
}

/// Reads the text after `\u`: four digits (perhaps of a surrogate, followed by its other half), or digits in braces.
fn code_unit(rest: &[u8]) -> Option<Escape> {
    if let [b'{', rest @ ..] = rest {
        let end = rest.iter().take(8).position(|byte| *byte == b'}')?;
        return Escape::char(number(&rest[..end], 16)?, end + 4);
    }
    let first = number(rest.get(..4)?, 16)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Escape::char(first, 6);
    }
    let second = rest.get(4..10)?.strip_prefix(b"\\u").and_then(|digits| number(digits, 16))?;
    let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    Escape::char(0x1_0000 + ((first - 0xd800) << 10) + low, 12)
}

/// Reads the text after `&`: a number, or one of XML's five names.
fn reference(rest: &[u8]) -> Option<Escape> {
    let end = rest.iter().take(10).position(|byte| *byte == b';')?;
    let code = match &rest[..end] {
        [b'#', b'x' | b'X', digits @ ..] => number(digits, 16)?,
        [b'#', digits @ ..] => number(digits, 10)?,
        b"amp" => u32::from(b'&'),
        b"lt" => u32::from(b'<'),
        b"gt" => u32::from(b'>'),
        b"quot" => u32::from(b'"'),
        b"apos" => u32::from(b'\''),
        _ => return None,
    };
    Escape::char(code, end + 2)
}

/// A number of digits and nothing else.
fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u32::from_str_radix(text, radix).ok()
}

fn hex_byte(high: u8, low: u8) -> Option<u8> {
    number(&[high, low], 16).and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_escape_is_decoded_and_what_is_none_stays() {
        let all = |text: &str| View::decoded(text.as_bytes(), b"\\%&=");
        let decoded = |text: &str| all(text).map(|view| String::from_utf8(view.bytes).unwrap());
        for (text, means) in [
            (r#"a\"\/\\\n\u0041\u00e5\ud83d\ude00\u{e5}\x41"#, "a\"/\\\nAå😀åA"),
            ("a%2f%2F%41+", "a//A+"),
            ("&lt;&#65;&#x41;&#X41;&amp;&quot;&apos;", "<AAA&\"'"),
            ("a=41=\r\nb=\nc", "aAbc"),
            ("%2541", "%41"),
        ] {
            assert_eq!(decoded(text).as_deref(), Some(means), "{text}");
        }
        for text in [
            "plain",
            "100% & more = less",
            "a\\q",
            "%+1%-1%g0",
            "\\ud83d",
            "\\u12",
            "&#xd800;",
            "&nothing;",
            "x=",
            "%4",
        ] {
            assert_eq!(decoded(text), None, "{text}");
        }
    }

    #[test]
    fn a_place_is_the_whole_spelling() {
        let text = b"x\\u0041B%43y";
        let view = View::decoded(text, b"\\%").unwrap();
        assert_eq!(view.bytes, b"xABCy");
        assert_eq!(&text[view.place(&(1..4))], b"\\u0041B%43");
        let twice = b"x%5Cu0041y";
        let outer = View::decoded(twice, b"%").unwrap();
        let inner = outer.of(View::decoded(&outer.bytes, b"\\").unwrap());
        assert_eq!(inner.bytes, b"xAy");
        assert_eq!(&twice[inner.place(&(1..2))], b"%5Cu0041");
        let wrapped = b"ab\r\n c\r\nd";
        let view = View::unwrapped(wrapped).unwrap();
        assert_eq!(view.bytes, b"abcd");
        assert_eq!(&wrapped[view.place(&(1..3))], b"b\r\n c", "the space after it stays");
    }
}
