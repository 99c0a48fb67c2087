//! Language tags (BCP 47), checked as far as their parts can be known.

use super::country::Country;

/// ISO 639-1, and the codes that were in use before theirs.
#[rustfmt::skip]
const LANGUAGES: &[&str] = &[
    "aa", "ab", "ae", "af", "ak", "am", "an", "ar", "as", "av", "ay", "az", "ba", "be", "bg", "bh", "bi", "bm", "bn",
    "bo", "br", "bs", "ca", "ce", "ch", "co", "cr", "cs", "cu", "cv", "cy", "da", "de", "dv", "dz", "ee", "el", "en",
    "eo", "es", "et", "eu", "fa", "ff", "fi", "fj", "fo", "fr", "fy", "ga", "gd", "gl", "gn", "gu", "gv", "ha", "he",
    "hi", "ho", "hr", "ht", "hu", "hy", "hz", "ia", "id", "ie", "ig", "ii", "ik", "in", "io", "is", "it", "iu", "iw",
    "ja", "ji", "jv", "jw", "ka", "kg", "ki", "kj", "kk", "kl", "km", "kn", "ko", "kr", "ks", "ku", "kv", "kw", "ky",
    "la", "lb", "lg", "li", "ln", "lo", "lt", "lu", "lv", "mg", "mh", "mi", "mk", "ml", "mn", "mo", "mr", "ms", "mt",
    "my", "na", "nb", "nd", "ne", "ng", "nl", "nn", "no", "nr", "nv", "ny", "oc", "oj", "om", "or", "os", "pa", "pi",
    "pl", "ps", "pt", "qu", "rm", "rn", "ro", "ru", "rw", "sa", "sc", "sd", "se", "sg", "sh", "si", "sk", "sl", "sm",
    "sn", "so", "sq", "sr", "ss", "st", "su", "sv", "sw", "ta", "te", "tg", "th", "ti", "tk", "tl", "tn", "to", "tr",
    "ts", "tt", "tw", "ty", "ug", "uk", "ur", "uz", "ve", "vi", "vo", "wa", "wo", "xh", "yi", "yo", "za", "zh", "zu",
];

/// The longest tag, in bytes.
const LONGEST: usize = 35;

/// Whether a tag names a language: `sv`, `pt-BR`, `zh-Hant-TW`, with `-` or `_`.
///
/// Two letters must be those of a language, or, as its region, of a country. Three letters (ISO 639-3, with thousands
/// of languages) and other parts are checked only by their form.
#[must_use]
pub fn exists(tag: &str) -> bool {
    let mut parts = tag.split(['-', '_']);
    let language = parts.next().unwrap_or_default().to_ascii_lowercase();
    let known = match language.len() {
        2 => LANGUAGES.binary_search(&language.as_str()).is_ok(),
        3 => language.bytes().all(|byte| byte.is_ascii_lowercase()),
        _ => false,
    };
    let is_part = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // A part of one letter begins an extension; the parts after it are no region.
    let mut regions = parts.clone().take_while(|part| part.len() > 1).filter(|part| part.len() == 2);
    known && tag.len() <= LONGEST && parts.all(is_part) && regions.all(Country::exists)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_languages_are_in_order() {
        assert!(LANGUAGES.is_sorted(), "they are found by halving");
    }

    #[test]
    fn a_language_exists_or_it_does_not() {
        for tag in ["sv", "EN", "pt-BR", "pt_BR", "zh-Hant-TW", "es-419", "fil", "nb", "sr-Latn", "iw", "de-CH-1901"] {
            assert!(exists(tag), "{tag}");
        }
        for tag in ["", "xx", "s", "svenska", "sv-", "sv-ZZ", "-SE", "en us", "english", "pt-BRAZILIANS", "en-XX"] {
            assert!(!exists(tag), "{tag}");
        }
        assert!(exists("en-u-ca-buddhist"), "an extension names no region");
    }
}
