//! Replies of a mail server (RFC 5321, 4.2; RFC 2034), read byte by byte. Pure: nothing here does I/O, and nothing
//! decides a reply's meaning for a mail.

use std::mem;

/// The stored length of a reply's text, in bytes. The code decides; the rest is cut.
const MAX_TEXT: usize = 4 << 10;
/// The stored length of a line, in bytes: twice the length that a server may send (RFC 5321, 4.5.3.1.5).
const MAX_LINE: usize = 1 << 10;
/// The bytes after which a longer reply is not read to its end.
const MAX_REPLY: usize = 64 << 10;

/// A server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerReply {
    pub code: u16,
    /// The enhanced status code, such as `5.7.708`.
    pub enhanced: Option<String>,
    /// Without the codes, a line each.
    pub text: String,
    /// Whether its last line was read. If not, nothing that comes after it can be told apart.
    pub is_whole: bool,
}

/// The received bytes are not a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotSmtp;

/// Reads one reply from the bytes that come in.
#[derive(Debug, Default)]
pub(super) struct ReplyParser {
    reply: Option<ServerReply>,
    line: Vec<u8>,
    seen: usize,
}

impl ServerReply {
    pub(super) fn new(code: u16, enhanced: &str, text: String) -> Self {
        Self { code, enhanced: Some(enhanced.to_owned()), text, is_whole: true }
    }

    /// 2yz.
    pub(super) const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4yz or 5yz.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self.code / 100, 4 | 5)
    }
}

impl ReplyParser {
    /// Takes bytes up to the reply's end, and returns how many it took and whether it ended with them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), NotSmtp> {
        let mut taken = 0;
        while let Some(end) = memchr::memchr(b'\n', &bytes[taken..]) {
            self.keep(&bytes[taken..=taken + end]);
            taken += end + 1;
            let line = mem::take(&mut self.line);
            if self.push(&line)? {
                return Ok((taken, true));
            }
        }
        self.keep(&bytes[taken..]);
        Ok((bytes.len(), self.seen >= MAX_REPLY))
    }

    /// Returns the reply as far as it came: each of its lines has the code, so the first of them decides. `None` if not
    /// even that came.
    pub(super) fn finish(mut self) -> Option<ServerReply> {
        if self.reply.is_none() && self.line.len() > 3 {
            let line = mem::take(&mut self.line);
            self.push(&line).ok()?;
            self.reply.as_mut()?.is_whole = false;
        }
        self.reply
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.seen += bytes.len();
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Adds a line; true for the last one. Of different codes the last one holds, if they are of one kind.
    fn push(&mut self, line: &[u8]) -> Result<bool, NotSmtp> {
        let line = line.trim_ascii_end();
        let code = line.get(..3).and_then(code).ok_or(NotSmtp)?;
        let is_last = match line.get(3) {
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => return Err(NotSmtp),
        };
        let text = line.get(4..).unwrap_or_default();
        // Some servers write `#5.1.0`.
        let bare = text.strip_prefix(b"#").unwrap_or(text);
        let (enhanced, text) = match enhanced(bare) {
            Some(length) => (Some(&bare[..length]), bare[length..].trim_ascii_start()),
            None => (None, text),
        };
        let empty = || ServerReply { code, enhanced: None, text: String::new(), is_whole: false };
        let is_first = self.reply.is_none();
        let reply = self.reply.get_or_insert_with(empty);
        if reply.code / 100 != code / 100 {
            return Err(NotSmtp);
        }
        reply.code = code;
        reply.is_whole = is_last;
        if reply.enhanced.is_none() {
            reply.enhanced = enhanced.map(|it| String::from_utf8_lossy(it).into_owned());
        }
        let text = String::from_utf8_lossy(text);
        if reply.text.len() + text.len() < MAX_TEXT {
            if !is_first {
                reply.text.push('\n');
            }
            reply.text.push_str(&text);
        }
        Ok(is_last)
    }
}

/// 200 to 599.
fn code(digits: &[u8]) -> Option<u16> {
    let code: u16 =
        std::str::from_utf8(digits).ok().filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    (200..600).contains(&code).then_some(code)
}

/// How long the enhanced status code is that a text begins with (RFC 3463, 2): a class, and a subject and a detail of up
/// to three digits.
fn enhanced(text: &[u8]) -> Option<usize> {
    let length = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
    let mut parts = text[..length].split(|byte| *byte == b'.');
    let is_number = |part: &[u8]| (1..=3).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
    let is_class = matches!(parts.next(), Some([b'2' | b'4' | b'5']));
    let rest = [parts.next(), parts.next()].map(|part| part.is_some_and(is_number));
    (is_class && rest == [true, true] && parts.next().is_none()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<ServerReply>, NotSmtp> {
        let mut parser = ReplyParser::default();
        parser.feed(bytes)?;
        Ok(parser.finish())
    }

    fn codes(bytes: &str) -> (u16, Option<String>, String) {
        let reply = read(bytes.as_bytes()).unwrap().unwrap();
        assert!(reply.is_whole, "{reply:?}");
        (reply.code, reply.enhanced, reply.text)
    }

    #[test]
    fn enhanced_codes_have_up_to_three_digits_each() {
        for (line, enhanced, text) in [
            ("550 5.7.708 Access denied", Some("5.7.708"), "Access denied"),
            ("550 5.999.999 x", Some("5.999.999"), "x"),
            ("550 5.7.256", Some("5.7.256"), ""),
            ("250 2.0.0 ok", Some("2.0.0"), "ok"),
            ("550 #5.1.0 Address rejected", Some("5.1.0"), "Address rejected"),
            ("550 #1 reason", None, "#1 reason"),
            ("550 5.1.1\tno", None, "5.1.1\tno"),
            ("550 5.7.1000 x", None, "5.7.1000 x"),
            ("550 5.7 x", None, "5.7 x"),
            ("550 5.7.1.2 x", None, "5.7.1.2 x"),
            ("550 192.0.2.1 is listed", None, "192.0.2.1 is listed"),
            ("550 3.7.1 x", None, "3.7.1 x"),
            ("550 5.1.1: x", None, "5.1.1: x"),
        ] {
            let read = codes(&format!("{line}\r\n"));
            assert_eq!((read.1.as_deref(), read.2.as_str()), (enhanced, text), "{line}");
        }
    }

    #[test]
    fn a_reply_has_several_lines_and_any_line_end() {
        let lines = codes("550-5.1.1 no such user\r\n550-5.1.1 here\n550 5.1.1\r\n");
        assert_eq!(lines, (550, Some("5.1.1".to_owned()), "no such user\nhere\n".to_owned()));
        assert_eq!(codes("250\r\n").0, 250);
        assert_eq!(codes("250 \n").0, 250);
        assert_eq!(codes("250-a\r\n251 b\r\n").0, 251);
    }

    #[test]
    fn a_reply_ends_where_it_ends_however_it_is_cut_up() {
        let bytes = b"250-one\r\n250 two\r\n354 go\r\n";
        assert_eq!(ReplyParser::default().feed(bytes), Ok((18, true)));
        let mut parser = ReplyParser::default();
        let ended = bytes.iter().position(|byte| parser.feed(&[*byte]).unwrap().1);
        assert_eq!((ended, parser.finish().unwrap().text.as_str()), (Some(17), "one\ntwo"));
    }

    #[test]
    fn what_is_long_is_cut_and_its_code_stands() {
        let many = format!("250-2.0.0 {}\r\n", "x".repeat(90));
        let reply = codes(&format!("{}250 2.0.0 queued\r\n", many.repeat(500)));
        assert_eq!((reply.0, reply.1.as_deref()), (250, Some("2.0.0")));
        assert!(reply.2.len() <= MAX_TEXT && reply.2.len() > MAX_TEXT - 200, "{}", reply.2.len());
        let line = codes(&format!("554 {}\r\n", "y".repeat(20_000)));
        assert_eq!((line.0, line.2.len()), (554, MAX_LINE - 4));
        let endless = many.repeat(2_000);
        let mut parser = ReplyParser::default();
        assert!(parser.feed(endless.as_bytes()).unwrap().1);
        assert!(parser.finish().is_some_and(|reply| reply.code == 250 && !reply.is_whole));
    }

    #[test]
    fn a_reply_that_is_cut_off_is_told_by_its_first_line() {
        for cut in ["250-2.0.0 queued\r\n", "250-2.0.0 queued\r\n25", "250 2.0.0 que", "250-"] {
            let reply = read(cut.as_bytes()).unwrap().unwrap_or_else(|| panic!("{cut}"));
            assert_eq!((reply.code, reply.is_whole), (250, false), "{cut}");
        }
        for cut in ["", "2", "250"] {
            assert_eq!(read(cut.as_bytes()), Ok(None), "{cut}");
        }
    }

    #[test]
    fn however_bytes_come_they_say_the_same() {
        let mut rng = angarium_domain::seed::rng();
        let pieces = ["250", "-", " ", "\r\n", "\n", "5.7.708", "x", "550", "\u{e9}", "354 go\r\n", "250-a\r\n", "."];
        for _ in 0..20_000 {
            let text: String = (0..rng.usize(..12)).filter_map(|_| rng.choice(pieces)).collect();
            let mut parser = ReplyParser::default();
            let at_once = parser.feed(text.as_bytes()).map(|(_, ended)| (ended, parser.finish()));
            let mut parser = ReplyParser::default();
            let mut ended = Ok((0, false));
            for byte in text.bytes() {
                ended = parser.feed(&[byte]);
                if ended.map_or(true, |(_, ended)| ended) {
                    break;
                }
            }
            assert_eq!(ended.map(|(_, ended)| (ended, parser.finish())), at_once, "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_not_a_reply() {
        for bad in ["not SMTP\r\n", "\r\n", "25\r\n", "25O ok\r\n", "250/ok\r\n", "100 x\r\n", "600 x\r\n", "+50 x\r\n"]
        {
            assert_eq!(read(bad.as_bytes()), Err(NotSmtp), "{bad}");
        }
        assert_eq!(read(b"250-queued\r\n550 no\r\n"), Err(NotSmtp));
        assert_eq!(read(&[b'2', b'5', b'0', b' ', 0xff, b'\n']).unwrap().unwrap().text, "\u{fffd}");
    }
}
