//! Whether a client's bytes are HTTP/1 in the one form that every parser reads alike (RFC 9112).
//! Where two programs may disagree about the end of a request, a proxy in front of the gateway can be
//! made to take a part of one request's body for the next request; such bytes are refused.
//!
//! It reads no clock and no socket, and it changes nothing: hyper parses the bytes that it lets pass.

use super::super::problem::Problem;
use axum::http::StatusCode;

/// The longest request line, in bytes.
const LONGEST_REQUEST_LINE: usize = 16 << 10;
/// The longest head: request line and fields, in bytes.
const LONGEST_HEAD: usize = 32 << 10;
/// The most header fields; hyper takes no more by default.
const MOST_FIELDS: usize = 100;
/// The longest chunk size: 16 hexadecimal digits are 64 bits.
const LONGEST_CHUNK_SIZE: usize = 16;
/// The longest method that any registry has is shorter.
const LONGEST_METHOD: usize = 32;

/// Why a connection's bytes are refused; the connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StrictRefusal {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the request line must have at most {LONGEST_REQUEST_LINE} bytes")]
    LongRequestLine,
    #[error("the head must have at most {LONGEST_HEAD} bytes and {MOST_FIELDS} fields")]
    LargeHead,
}

impl StrictRefusal {
    /// Returns the problem for the client.
    pub fn problem(self) -> Problem {
        let (status, code, title) = match self {
            Self::Malformed(_) => {
                (StatusCode::BAD_REQUEST, "malformed_request", "The request is not HTTP in its strict form")
            }
            Self::LongRequestLine => (StatusCode::URI_TOO_LONG, "uri_too_long", "The request line is too long"),
            Self::LargeHead => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_fields_too_large",
                "The header fields are too large",
            ),
        };
        Problem::request(status, code, title, self.to_string())
    }
}

/// The part of the request that the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    RequestLine,
    Field,
    /// The remaining bytes of a body with a `Content-Length`.
    Body(u64),
    ChunkSize,
    /// The remaining bytes of a chunk.
    Chunk(u64),
    ChunkEnd,
    /// The empty line after the last chunk.
    LastLine,
}

/// The contents of a head so far.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    fields: usize,
    is_http_11: bool,
    length: Option<u64>,
    is_chunked: bool,
    has_host: bool,
    empty_lines: usize,
}

/// Follows one connection's requests.
#[derive(Debug)]
pub struct Strict {
    place: Place,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    head: Head,
}

impl Strict {
    pub fn new() -> Self {
        Self { place: Place::RequestLine, line: Vec::new(), head: Head::default() }
    }

    /// Whether a head has begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.place == Place::Field || self.place == Place::RequestLine && !self.line.is_empty()
    }

    /// Whether a body has not ended.
    pub fn is_in_body(&self) -> bool {
        !matches!(self.place, Place::RequestLine | Place::Field)
    }

    /// Reads on.
    ///
    /// # Errors
    /// When the bytes have to be refused; nothing of the connection may be read after that.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), StrictRefusal> {
        while !bytes.is_empty() {
            bytes = match self.place {
                Place::Body(left) | Place::Chunk(left) => self.skip(left, bytes),
                Place::RequestLine | Place::Field | Place::ChunkSize | Place::ChunkEnd | Place::LastLine => {
                    self.read_line(bytes)?
                }
            };
        }
        Ok(())
    }

    fn skip<'a>(&mut self, left: u64, bytes: &'a [u8]) -> &'a [u8] {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let left = left - taken as u64;
        self.place = match (self.place, left) {
            (Place::Chunk(_), 0) => Place::ChunkEnd,
            (Place::Chunk(_), _) => Place::Chunk(left),
            (_, 0) => Place::RequestLine,
            _ => Place::Body(left),
        };
        &bytes[taken..]
    }

    /// Reads up to the end of a line, if it is there.
    fn read_line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], StrictRefusal> {
        let end = memchr::memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        self.check_length(part.len())?;
        self.check_bytes(part)?;
        self.line.extend_from_slice(part);
        let Some(end) = end else { return Ok(&[]) };
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").ok_or(StrictRefusal::Malformed("a line must end with CR LF"))?;
        self.end_line(line)?;
        Ok(&bytes[end + 1..])
    }

    /// No control character may stand in a line but a tab; a CR ends it.
    fn check_bytes(&self, part: &[u8]) -> Result<(), StrictRefusal> {
        let after_end = self.line.last() == Some(&b'\r') && !part.is_empty();
        let text = part.strip_suffix(b"\r").unwrap_or(part);
        match after_end || text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            true => Err(StrictRefusal::Malformed("control characters are not allowed in the head")),
            false => Ok(()),
        }
    }

    fn check_length(&mut self, more: usize) -> Result<(), StrictRefusal> {
        let line = self.line.len() + more;
        match self.place {
            Place::RequestLine if line > LONGEST_REQUEST_LINE => Err(StrictRefusal::LongRequestLine),
            Place::RequestLine | Place::Field if self.head.bytes + line > LONGEST_HEAD => Err(StrictRefusal::LargeHead),
            Place::ChunkSize if line > LONGEST_CHUNK_SIZE + 1 => Err(StrictRefusal::Malformed(
                "a chunk size must have 1 to 16 hexadecimal digits; extensions are not allowed",
            )),
            Place::ChunkEnd if line > 1 => Err(StrictRefusal::Malformed("a chunk must end with CR LF")),
            Place::LastLine if line > 1 => Err(StrictRefusal::Malformed("trailer fields are not allowed")),
            _ => Ok(()),
        }
    }

    /// A whole line, without its CR LF.
    fn end_line(&mut self, line: &[u8]) -> Result<(), StrictRefusal> {
        self.head.bytes += line.len() + 2;
        self.place = match self.place {
            Place::RequestLine if line.is_empty() => self.head.skip_empty_line()?,
            Place::RequestLine => self.head.request_line(line)?,
            Place::Field if line.is_empty() => std::mem::take(&mut self.head).end()?,
            Place::Field => self.head.field(line)?,
            Place::ChunkSize => chunk_size(line)?,
            Place::ChunkEnd => Place::ChunkSize,
            Place::LastLine | Place::Body(_) | Place::Chunk(_) => Place::RequestLine,
        };
        if !self.is_in_head() {
            self.head = Head::default().after(&self.head);
        }
        Ok(())
    }
}

impl Head {
    /// One empty line before a request is allowed (RFC 9112, section 2.2).
    fn skip_empty_line(&mut self) -> Result<Place, StrictRefusal> {
        self.empty_lines += 1;
        match self.empty_lines {
            1 => Ok(Place::RequestLine),
            _ => Err(StrictRefusal::Malformed("a request must begin with its request line")),
        }
    }

    /// A fresh head that remembers the empty line before it.
    fn after(self, before: &Self) -> Self {
        Self { empty_lines: before.empty_lines, ..self }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<Place, StrictRefusal> {
        let form =
            StrictRefusal::Malformed("the request line must be `METHOD TARGET HTTP/1.1`, with one space between");
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form);
        };
        let is_method = (1..=LONGEST_METHOD).contains(&method.len()) && method.iter().copied().all(is_token);
        let is_target = !target.is_empty() && target.iter().all(u8::is_ascii_graphic);
        self.is_http_11 = version == b"HTTP/1.1";
        if !is_method || !is_target || !self.is_http_11 && version != b"HTTP/1.0" {
            return Err(form);
        }
        if method == b"CONNECT" {
            return Err(StrictRefusal::Malformed("the method CONNECT is not allowed"));
        }
        Ok(Place::Field)
    }

    fn field(&mut self, line: &[u8]) -> Result<Place, StrictRefusal> {
        self.fields += 1;
        if self.fields > MOST_FIELDS {
            return Err(StrictRefusal::LargeHead);
        }
        let form = StrictRefusal::Malformed(
            "a header field must be `Name: value` on one line, without a space before the colon",
        );
        let colon = memchr::memchr(b':', line).ok_or(form)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(form);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(value)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding(value)?;
        } else if name.eq_ignore_ascii_case(b"host") {
            self.host(value)?;
        }
        Ok(Place::Field)
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), StrictRefusal> {
        if self.length.is_some() {
            return Err(StrictRefusal::Malformed("a second `Content-Length` is not allowed"));
        }
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        self.length = Some(length.ok_or(StrictRefusal::Malformed("`Content-Length` must be a decimal number"))?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), StrictRefusal> {
        if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(StrictRefusal::Malformed("`Transfer-Encoding` must be `chunked`, once"));
        }
        self.is_chunked = true;
        Ok(())
    }

    fn host(&mut self, value: &[u8]) -> Result<(), StrictRefusal> {
        let is_host = value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte));
        if self.has_host || !is_host {
            return Err(StrictRefusal::Malformed("`Host` must be given once, as a host and perhaps a port"));
        }
        self.has_host = true;
        Ok(())
    }

    /// Returns the part after the head.
    fn end(self) -> Result<Place, StrictRefusal> {
        match (self.is_chunked, self.length) {
            _ if self.is_http_11 && !self.has_host => Err(StrictRefusal::Malformed("`Host` must be given")),
            (true, Some(_)) => {
                Err(StrictRefusal::Malformed("`Content-Length` is not allowed together with `Transfer-Encoding`"))
            }
            (true, None) if !self.is_http_11 => {
                Err(StrictRefusal::Malformed("`Transfer-Encoding` is not allowed in HTTP/1.0"))
            }
            (true, None) => Ok(Place::ChunkSize),
            (false, None | Some(0)) => Ok(Place::RequestLine),
            (false, Some(length)) => Ok(Place::Body(length)),
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<Place, StrictRefusal> {
    let digits = !line.is_empty() && line.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(line).ok().filter(|_| digits).and_then(|text| u64::from_str_radix(text, 16).ok());
    match size {
        Some(0) => Ok(Place::LastLine),
        Some(size) => Ok(Place::Chunk(size)),
        None => Err(StrictRefusal::Malformed(
            "a chunk size must have 1 to 16 hexadecimal digits; extensions are not allowed",
        )),
    }
}

/// RFC 9110's `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(bytes: &[u8]) -> Result<Strict, StrictRefusal> {
        let mut strict = Strict::new();
        strict.feed(bytes).map(|()| strict)
    }

    fn fed_by_the_byte(bytes: &[u8]) -> Result<Strict, StrictRefusal> {
        let mut strict = Strict::new();
        bytes.iter().try_for_each(|byte| strict.feed(&[*byte])).map(|()| strict)
    }

    fn request(fields: &str) -> Vec<u8> {
        format!("POST /v1/messages HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn requests_in_the_strict_form_pass() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://a/b?c=%20 HTTP/1.1\r\nhOST:a\r\nX:\t y z \r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na\nbGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\n\r\n\n\r\n00A\r\n0123456789\r\n0\r\n\r\nGET / \
             HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX: \u{e4}\r\n\r\n",
        ] {
            for strict in [fed(good.as_bytes()), fed_by_the_byte(good.as_bytes())] {
                let strict = strict.unwrap_or_else(|error| panic!("{error}: {good:?}"));
                assert!(!strict.is_in_head() && !strict.is_in_body(), "{good:?}");
            }
        }
    }

    #[test]
    fn what_parsers_read_differently_is_refused() {
        let mut bad: Vec<Vec<u8>> = [
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            "Content-Length: 4\r\nContent-Length: 4\r\n",
            "Content-Length: 4, 4\r\n",
            "Content-Length: +4\r\n",
            "Content-Length: 0x4\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length : 4\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: b\r\n",
            "X: a\r\n b\r\n",
            " X: a\r\n",
            "X: a\nY: b\r\n",
            "X: a\rY: b\r\n",
            "X: a\0b\r\n",
            "X\r\n",
            ": a\r\n",
            "X y: a\r\n",
            "\r",
        ]
        .iter()
        .map(|fields| request(fields))
        .collect();
        bad.extend(
            [
                "GET / HTTP/1.1\n",
                "GET / HTTP/1.1\r\nHost: a\n\r\n",
                "GET / HTTP/1.1\r\nHost: a\r\n\n",
                "GET  / HTTP/1.1\r\n",
                "GET /\tHTTP/1.1\r\n",
                "GET / HTTP/1.2\r\n",
                "GET / HTTP/2.0\r\n",
                "GET /\r\n",
                "GET /\u{e4} HTTP/1.1\r\n",
                " GET / HTTP/1.1\r\n",
                "\n",
                "\r\n\r\n",
                "G(T / HTTP/1.1\r\n",
                "CONNECT a:1 HTTP/1.1\r\n",
                "GET / HTTP/1.1\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: a/b\r\n",
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            ]
            .iter()
            .map(|text| text.as_bytes().to_vec()),
        );
        for chunks in
            ["3\n", "3;a=b\r\n", "3 \r\n", "\r\n", "-3\r\n", "g\r\n", "3\r\nabcd\r\n", "3\r\nabc\n", "0\r\nX: y\r\n"]
        {
            bad.push([request("Transfer-Encoding: chunked\r\n"), chunks.as_bytes().to_vec()].concat());
        }
        for bytes in bad {
            for strict in [fed(&bytes), fed_by_the_byte(&bytes)] {
                let refusal = strict.err().unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
                assert!(matches!(refusal, StrictRefusal::Malformed(_)), "{refusal}");
            }
        }
    }

    #[test]
    fn a_head_has_an_end() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(LONGEST_REQUEST_LINE));
        assert_eq!(fed(long.as_bytes()).err(), Some(StrictRefusal::LongRequestLine));
        assert_eq!(fed(&vec![b'a'; LONGEST_REQUEST_LINE + 1]).err(), Some(StrictRefusal::LongRequestLine));
        assert_eq!(fed(&request(&"X: y\r\n".repeat(MOST_FIELDS))).err(), Some(StrictRefusal::LargeHead));
        assert!(fed(&request(&"X: y\r\n".repeat(MOST_FIELDS - 1))).is_ok());
        assert_eq!(fed(&request(&format!("X: {}", "y".repeat(LONGEST_HEAD)))).err(), Some(StrictRefusal::LargeHead));
        let many = request(&"X: y\r\n".repeat(50)).repeat(100);
        assert!(fed(&many).is_ok(), "each request has a head of its own");
    }

    #[test]
    fn it_knows_whether_a_request_is_under_way() {
        assert!(fed(b"GET").unwrap().is_in_head());
        assert!(fed(b"GET / HTTP/1.1\r\n").unwrap().is_in_head());
        let body = request("Content-Length: 2\r\n");
        assert!(fed(&body).unwrap().is_in_body());
        assert!(fed(&[body.clone(), b"a".to_vec()].concat()).unwrap().is_in_body());
        assert!(!fed(&[body, b"ab".to_vec()].concat()).unwrap().is_in_body());
    }
}
