//! Reading an answer's headers.

use crate::{HttpResponse, Kv};

/// Returns the first header of that name, in any case.
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
    /// Returns the first header of that name, in any case.
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

/// The longest wait that is reported, in milliseconds: a thousand years. The gateway follows less.
const LONGEST_WAIT_MS: f64 = 3.2e13;

/// Milliseconds until the time in a `Retry-After` (RFC 9110, 10.2.3): seconds in any number of digits, or a date in any of
/// HTTP's three forms; never negative, `None` when it is neither.
#[must_use]
pub fn retry_after_ms(value: &str, now_ms: f64) -> Option<f64> {
    let value = value.trim();
    let ms = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        value.parse::<f64>().ok()? * 1000.0
    } else {
        http_date_seconds(value, now_ms)? as f64 * 1000.0 - now_ms
    };
    Some(ms.clamp(0.0, LONGEST_WAIT_MS))
}

/// Seconds since 1970 of an HTTP date (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`, or one of the obsolete forms
/// `Sunday, 06-Nov-94 08:49:37 GMT` and `Sun Nov  6 08:49:37 1994`, which a recipient must read too.
fn http_date_seconds(date: &str, now_ms: f64) -> Option<i64> {
    let words: Vec<_> = date.split([' ', ',', '-']).filter(|word| !word.is_empty()).collect();
    let (day, month, year, clock) = match words[..] {
        [_, day, month, year, clock, "GMT"] => (day, month, year, clock),
        [_, month, day, clock, year] => (day, month, year, clock),
        _ => return None,
    };
    let day: i64 = day.parse().ok()?;
    let month = month_number(month)?;
    let year = full_year(year, now_ms)?;
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && (1970..10_000).contains(&year);
    in_range.then(|| ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// A year of two digits is the last one that ends in them and is at most 50 years ahead.
fn full_year(year: &str, now_ms: f64) -> Option<i64> {
    let number: i64 = year.parse().ok()?;
    if year.len() != 2 {
        return Some(number);
    }
    let latest = 1970 + (now_ms / (365.2425 * 86_400_000.0)) as i64 + 50;
    Some(latest - (latest - number).rem_euclid(100))
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
    fn retry_after_takes_the_obsolete_forms_of_dates() {
        for date in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun Nov 06 08:49:37 1994"] {
            assert_eq!(retry_after_ms(date, 784_111_776_000.0), Some(1_000.0), "{date}");
        }
        // 2026-11-30: in 75 years, or 25 years ago.
        let now = 1_796_000_000_000.0;
        assert_eq!(retry_after_ms("Friday, 30-Nov-01 00:00:00 GMT", now), Some(0.0));
        // In 49 years.
        assert!(retry_after_ms("Saturday, 30-Nov-75 00:00:00 GMT", now).unwrap() > 1.5e12);
    }

    #[test]
    fn a_retry_after_may_have_any_number_of_digits() {
        assert_eq!(retry_after_ms("4294967296", 0.0), Some(4_294_967_296_000.0));
        assert_eq!(retry_after_ms("00000000000000000000120", 0.0), Some(120_000.0));
        assert_eq!(retry_after_ms(&"9".repeat(400), 0.0), Some(LONGEST_WAIT_MS));
    }

    #[test]
    fn a_retry_after_that_is_neither_is_ignored() {
        for value in [
            "",
            "soon",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun Nov 6 1994",
        ] {
            assert_eq!(retry_after_ms(value, 0.0), None, "{value}");
        }
    }
}
