//! The number of segments of an SMS text. It is an estimate, for a price before sending: the provider's answer has the
//! billed number.

/// Characters of one septet in the GSM 7-bit alphabet (3GPP TS 23.038, 6.2.1), beside ASCII's.
const GSM: &str = "£¥èéùìòÇØøÅåΔΦΓΛΩΠΨΣΘΞÆæßÉ¤¡ÄÖÑÜ§¿äöñüà";
/// The extension table (3GPP TS 23.038, 6.2.1.1): an escape and a septet for each.
const ESCAPED: &str = "\u{c}^{}\\[~]|€";

/// Returns the segments of a text: one for up to 160 septets, or 70 UTF-16 units if a character is not in the alphabet;
/// beyond that the number with up to 153 septets, or 67 units, each.
///
/// Returns the number of segments. A character is never split: an escape that does not fit with its character begins
/// the next segment, and so does a surrogate with its pair (3GPP TS 23.040, 9.2.3.24.1).
#[must_use]
pub fn segments(text: &str) -> u32 {
    if text.chars().all(|char| septets(char).is_some()) {
        parts(text.chars().filter_map(septets), 160, 153)
    } else {
        parts(text.chars().map(char::len_utf16), 70, 67)
    }
}

/// How many parts characters of these lengths fill: one of up to `single`, else several of up to `several` each.
fn parts(lengths: impl Iterator<Item = usize> + Clone, single: usize, several: usize) -> u32 {
    if lengths.clone().sum::<usize>() <= single {
        return 1;
    }
    let (mut parts, mut filled) = (1, 0);
    for length in lengths {
        if filled + length > several {
            (parts, filled) = (parts + 1, 0);
        }
        filled += length;
    }
    parts
}

fn septets(char: char) -> Option<usize> {
    match char {
        '`' => None,
        '\n' | '\r' => Some(1),
        _ if ESCAPED.contains(char) => Some(2),
        ' '..='~' => Some(1),
        _ => GSM.contains(char).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_as_many_as_are_billed() {
        for (text, expected) in [
            (String::new(), 1),
            ("a".repeat(160), 1),
            ("a".repeat(161), 2),
            ("a".repeat(306), 2),
            ("a".repeat(307), 3),
            ("€".repeat(80), 1),
            ("€".repeat(81), 2),
            ("å".repeat(160), 1),
            ("č".repeat(70), 1),
            ("č".repeat(71), 2),
            ("😀".repeat(35), 1),
            ("😀".repeat(36), 2),
        ] {
            assert_eq!(segments(&text), expected, "{text}");
        }
    }

    /// Texts with numbers of segments from public calculators and bug reports.
    #[test]
    fn known_texts_take_as_many_as_others_say() {
        let digits = |count: usize| "1234567890".chars().cycle().take(count).collect::<String>();
        let fox = "The quick brown fox jumps over the lazy dog. ".repeat(3);
        let fox = format!(
            "{fox}The quick brown f[x jumps over the lazy dog. {}",
            "The quick brown fox jumps over the lazy dog. ".repeat(2)
        ) + "The quick brown fox jumps over the.";
        for (text, expected) in [
            (format!("{{{}", digits(158)), 1),
            (format!("{{{}", digits(159)), 2),
            (format!("😜{}", digits(68)), 1),
            (format!("😜{}", digits(69)), 2),
            (digits(307), 3),
            (format!("😜{}", digits(133)), 3),
            // 306 septets; 152 of them fit into a segment of 153.
            ("]".repeat(153), 3),
            (fox, 3),
            ("|".repeat(69) + "∞", 1),
            ("a".repeat(159) + "\\", 2),
        ] {
            assert_eq!(segments(&text), expected, "{text}");
        }
    }

    #[test]
    fn no_character_is_split_between_segments() {
        let text = |before: usize, letter: &str, odd: char, after: usize| {
            format!("{}{odd}{}", letter.repeat(before), letter.repeat(after))
        };
        for (text, expected) in [
            (text(152, "a", '€', 151), 2),
            (text(152, "a", '€', 152), 3),
            (text(151, "a", '€', 153), 2),
            (text(66, "č", '😀', 65), 2),
            (text(66, "č", '😀', 66), 3),
            (text(65, "č", '😀', 67), 2),
        ] {
            assert_eq!(segments(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_form_feed_is_an_extended_character() {
        assert_eq!(segments(&("a".repeat(158) + "\u{c}")), 1);
        assert_eq!(segments(&("a".repeat(159) + "\u{c}")), 2, "it takes two septets, and keeps the alphabet");
        assert_eq!(segments(&("a".repeat(100) + "\u{b}")), 2, "a vertical tab is in no table");
    }
}
