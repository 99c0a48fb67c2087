//! Where a message goes, as far as its address tells.

mod calling_codes;

use std::fmt;

use calling_codes::CALLING_CODES;

/// Domains of countries that are sold all over the world: they tell nothing of where somebody is.
const SOLD_ABROAD: &[&str] = &[
    "ac", "ag", "ai", "am", "cc", "co", "eu", "fm", "gg", "io", "la", "ly", "me", "nu", "pw", "sc", "sh", "to", "tv",
    "vc", "ws",
];

/// A country by its ISO 3166-1 code of two letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// The country that an address of a channel lies in: by the code of a telephone number, by the
    /// last label of a mail address's domain. `None` where it does not tell.
    #[must_use]
    pub fn of_address(channel: &str, address: &str) -> Option<Self> {
        match channel {
            "sms" | "mms" | "voice" | "whatsapp" => Self::of_number(address.trim_start_matches("whatsapp:")),
            "email" => Self::of_domain(address.rsplit_once('@')?.1),
            _ => None,
        }
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
            found = CALLING_CODES.binary_search_by_key(&prefix, |(code, _)| *code).ok().or(found);
        }
        found.map(|place| Self(CALLING_CODES[place].1))
    }

    fn of_domain(domain: &str) -> Option<Self> {
        let last = domain.trim_end_matches('.').rsplit_once('.')?.1.to_ascii_lowercase();
        let letters: [u8; 2] = last.as_bytes().try_into().ok()?;
        let tells = letters.iter().all(u8::is_ascii_lowercase) && !SOLD_ABROAD.contains(&last.as_str());
        let letters = if letters == *b"uk" { *b"gb" } else { letters };
        tells.then(|| Self(letters.map(|letter| letter.to_ascii_uppercase())))
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
            ("ann@localhost", None),
            ("ann", None),
        ] {
            let found = Country::of_address("email", address);
            assert_eq!(found.as_ref().map(Country::as_str), country, "{address}");
        }
        assert_eq!(Country::of_address("webhook", "https://example.se/"), None);
    }
}
