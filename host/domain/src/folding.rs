//! Texts in the form in which rules compare them: without regard to case, and however their accents are encoded.
//!
//! It knows no language. Full case folding (Unicode, 3.13) has `Straße` equal `STRASSE`, and every `i` with a dot equal
//! every `I` without one; so Turkish `ı` and `İ`, which it leaves apart from both, are letters of their own.

use std::borrow::Cow;

use unicase::UniCase;
use unicode_normalization::{UnicodeNormalization, is_nfc};

pub use unicode_normalization::char::is_combining_mark;

/// The text in normalization form C: an `e` with an accent beside it is the same as `é`.
#[must_use]
pub fn composed(text: &str) -> Cow<'_, str> {
    if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

/// The form that texts have in common which differ in nothing but case and encoding: a canonical caseless match
/// (Unicode, D145), composed. Folding it again changes nothing.
#[must_use]
pub fn folded(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let decomposed: String = text.nfd().collect();
    UniCase::unicode(decomposed).to_folded_case().nfc().collect()
}

/// The characters of the folded text, each with whether a character of the text begins with it: `ß` is folded to two.
#[must_use]
pub fn folded_characters(text: &str) -> Vec<(char, bool)> {
    let mut characters = Vec::with_capacity(text.len());
    for character in composed(text).chars() {
        if character.is_ascii() {
            characters.push((character.to_ascii_lowercase(), true));
            continue;
        }
        let folded = folded(character.encode_utf8(&mut [0; 4]));
        characters.extend(folded.chars().enumerate().map(|(nth, it)| (it, nth == 0)));
    }
    characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_whatever_their_case_and_encoding() {
        for (one, other) in [
            ("Straße", "STRASSE"),
            ("Straße", "Strasse"),
            ("GROẞ", "groß"),
            ("Malmö", "MALMO\u{308}"),
            ("caf\u{e9}", "CAFE\u{301}"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("ﬁn", "FIN"),
            ("Å", "\u{212b}"),
            ("K", "\u{212a}"),
            ("İstanbul", "i\u{307}stanbul"),
            // Two marks on one letter, in either order.
            ("a\u{323}\u{301}", "A\u{301}\u{323}"),
        ] {
            assert_eq!(folded(one), folded(other), "{one} and {other}");
        }
    }

    #[test]
    fn other_letters_stay_apart() {
        for (one, other) in [
            ("Malmö", "Malmo"),
            ("ı", "i"),
            ("İstanbul", "Istanbul"),
            ("ısparta", "Isparta"),
            ("groß", "gros"),
            ("а", "a"),
        ] {
            assert_ne!(folded(one), folded(other), "{one} and {other}");
        }
        assert_eq!(folded("DIYARBAKIR"), "diyarbakir", "without a language a capital I is an i");
    }

    #[test]
    fn to_fold_again_changes_nothing() {
        let all: Vec<char> = ('\0'..=char::MAX).filter(|it| !it.is_ascii()).collect();
        for text in all.iter().map(char::to_string).chain(["Straße ẞ İ ΐ ᾳ ﬃ".to_owned()]) {
            let once = folded(&text);
            assert_eq!(folded(&once), once, "{text:?}");
            assert_eq!(composed(&once), once, "{text:?}");
        }
    }

    #[test]
    fn a_character_may_be_folded_to_several() {
        let folded = folded_characters("Aße\u{301}");
        assert_eq!(folded, [('a', true), ('s', true), ('s', false), ('é', true)]);
    }
}
