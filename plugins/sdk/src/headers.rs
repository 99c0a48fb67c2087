//! Reading an answer's headers.

use crate::{HttpResponse, Kv};

/// The first header of that name, whatever its case.
#[must_use]
pub fn find_header<'a>(headers: &'a [Kv], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
}

/// Whether the gateway takes it as a header's name: a token (RFC 9110, 5.6.2) of at most 128 bytes.
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(is_token)
}

impl HttpResponse {
    /// The first header of that name, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }

    /// The answer's `Retry-After` in milliseconds from `now_ms`.
    #[must_use]
    pub fn retry_after_ms(&self, now_ms: f64) -> Option<f64> {
        retry_after_ms(self.header("retry-after")?, now_ms)
    }

    /// The body as JSON of that form, if it is.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Milliseconds until the time in a `Retry-After` (RFC 9110, 10.2.3): seconds or an HTTP date;
/// never negative, `None` when it is neither.
#[must_use]
pub fn retry_after_ms(value: &str, now_ms: f64) -> Option<f64> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(f64::from(seconds) * 1000.0);
    }
    Some((http_date_seconds(value)? as f64 * 1000.0 - now_ms).max(0.0))
}

/// Seconds since 1970 of an IMF-fixdate such as `Sun, 06 Nov 1994 08:49:37 GMT`; the two forms
/// that RFC 9110 calls obsolete aren't read.
fn http_date_seconds(date: &str) -> Option<i64> {
    let mut words = date.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month = month_number(words.next()?)?;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range =
        (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60 && (1970..10_000).contains(&year);
    (words.next()? == "GMT" && in_range)
        .then(|| ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

fn month_number(name: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    MONTHS.iter().position(|month| *month == name).and_then(|index| i64::try_from(index + 1).ok())
}

/// Days in the Gregorian calendar, counted in years that begin in March, so that the leap day is
/// the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_name_is_a_token() {
        assert!(is_header_name("x-team_1"));
        for name in ["", "x a", "x:a", "x\r\na", "ü", &"x".repeat(129)] {
            assert!(!is_header_name(name), "{name}");
        }
    }

    #[test]
    fn retry_after_takes_seconds_and_dates() {
        assert_eq!(retry_after_ms("120", 0.0), Some(120_000.0));
        assert_eq!(retry_after_ms("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_776_000.0), Some(1_000.0));
        assert_eq!(retry_after_ms("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_799_500.0), Some(500.0));
        assert_eq!(retry_after_ms("Sun, 06 Nov 1994 08:49:37 GMT", 1e13), Some(0.0));
    }

    #[test]
    fn a_retry_after_that_is_neither_is_ignored() {
        for value in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 06 Foo 1994 08:49:37 GMT"] {
            assert_eq!(retry_after_ms(value, 0.0), None, "{value}");
        }
    }
}
