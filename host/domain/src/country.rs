//! The country of a message's address.

mod calling_codes;
mod codes;

use std::fmt;

use calling_codes::CALLING_CODES;
use codes::CODES;

/// Domains of countries that are sold all over the world: they do not locate their owner.
const SOLD_ABROAD: &[&str] = &[
    "ac", "ag", "ai", "am", "cc", "co", "eu", "fm", "gg", "io", "la", "ly", "me", "nu", "pw", "sc", "sh", "to", "tv",
    "vc", "ws",
];

/// Numbers of code 1 that belong to no country: those that are free for the caller, and those that cost more.
const OF_NO_COUNTRY: &[u32] = &[1800, 1833, 1844, 1855, 1866, 1877, 1888, 1900];

/// A country by its ISO 3166-1 code of two letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// Returns the country of an address: by the code of a telephone number, by the last label of a mail address's
    /// domain. `None` if the address does not reveal it.
    #[must_use]
    pub fn of_address(channel: &str, address: &str) -> Option<Self> {
        match channel {
            "sms" | "mms" | "voice" | "whatsapp" => Self::of_number(address.trim_start_matches("whatsapp:")),
            "email" => Self::of_domain(address.rsplit_once('@')?.1),
            _ => None,
        }
    }

    /// Whether these two letters, in any case, are those of a country.
    #[must_use]
    pub fn exists(letters: &str) -> bool {
        let letters: Result<[u8; 2], _> = letters.as_bytes().try_into();
        letters.is_ok_and(|letters| CODES.binary_search(&letters.map(|letter| letter.to_ascii_uppercase())).is_ok())
    }

    /// Its two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// `+46 70 …`: with or without the marks that people write between the digits.
    fn of_number(number: &str) -> Option<Self> {
        let digits = number.strip_prefix('+')?.bytes().filter(u8::is_ascii_digit).take(7);
        let mut prefix = 0;
        let mut found = None;
        for digit in digits {
            prefix = prefix * 10 + u32::from(digit - b'0');
            if OF_NO_COUNTRY.contains(&prefix) {
                return None;
            }
            found = CALLING_CODES.binary_search_by_key(&prefix, |(code, _)| *code).ok().or(found);
        }
        found.map(|place| Self(CALLING_CODES[place].1))
    }

    fn of_domain(domain: &str) -> Option<Self> {
        let last = domain.trim_end_matches('.').rsplit_once('.')?.1.to_ascii_lowercase();
        let letters: [u8; 2] = last.as_bytes().try_into().ok()?;
        let tells = !SOLD_ABROAD.contains(&last.as_str());
        let letters = if letters == *b"uk" { *b"gb" } else { letters }.map(|letter| letter.to_ascii_uppercase());
        (tells && CODES.binary_search(&letters).is_ok()).then_some(Self(letters))
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_in_order() {
        assert!(CALLING_CODES.is_sorted_by(|a, b| a.0 < b.0), "each once, and found by halving");
        assert!(CODES.is_sorted_by(|a, b| a < b), "each once, and found by halving");
        assert_eq!(CODES.len(), 249 + 2, "ISO 3166-1 and two more");
    }

    #[test]
    fn a_country_exists_or_it_does_not() {
        assert!(["SE", "se", "GB", "XK", "AC", "SS"].into_iter().all(Country::exists));
        assert!(["", "S", "UK", "XX", "EU", "SU", "SWE", "é"].into_iter().all(|it| !Country::exists(it)));
        let unknown = CALLING_CODES.iter().find(|(_, country)| CODES.binary_search(country).is_err());
        assert_eq!(unknown, None, "a number leads to a country that exists");
    }

    #[test]
    fn a_number_tells_its_country() {
        for (number, country) in [
            ("+46701234567", Some("SE")),
            ("+46 70-123 45 67", Some("SE")),
            ("+12025550123", Some("US")),
            ("+14165550123", Some("CA")),
            ("+18765550123", Some("JM")),
            ("+447700900123", Some("GB")),
            ("+447797712345", Some("JE")),
            ("+77710009998", Some("KZ")),
            ("+79161234567", Some("RU")),
            ("+5999123456", Some("CW")),
            ("+99900", None),
            ("+1613 734.6759", Some("CA")),
            ("+1 809-959-2376", Some("DO")),
            ("+15551234567", Some("US")),
            ("+18882422100", None),
            ("+1 866-207-1690", None),
            ("+80812345678", None),
            ("+979998889998", None),
            ("0701234567", None),
            ("ANGARIUM", None),
            ("+", None),
        ] {
            let found = Country::of_address("sms", number);
            assert_eq!(found.as_ref().map(Country::as_str), country, "{number}");
        }
        assert_eq!(Country::of_address("whatsapp", "whatsapp:+46701234567"), Some(Country(*b"SE")));
    }

    #[test]
    fn a_mail_address_tells_its_country_where_its_domain_is_one_of_a_country() {
        for (address, country) in [
            ("ann@example.se", Some("SE")),
            ("ann@mail.example.CO.UK", Some("GB")),
            ("ann@example.de.", Some("DE")),
            ("ann@example.com", None),
            ("ann@example.io", None),
            ("ann@example.su", None),
            ("ann@example.zz", None),
            ("ann@localhost", None),
            ("ann", None),
        ] {
            let found = Country::of_address("email", address);
            assert_eq!(found.as_ref().map(Country::as_str), country, "{address}");
        }
        assert_eq!(Country::of_address("webhook", "https://example.se/"), None);
    }
}
