//! How many segments a text takes as an SMS. An estimate, for a price before it is sent: what was
//! billed stands in the provider's answer.

/// Characters of one septet in the GSM 7-bit alphabet (3GPP TS 23.038, 6.2.1), beside ASCII's.
const GSM: &str = "£¥èéùìòÇØøÅåΔΦΓΛΩΠΨΣΘΞÆæßÉ¤¡ÄÖÑÜ§¿äöñüà";
/// Printable ASCII that takes two septets, or that the alphabet has not.
const ESCAPED: &str = "^{}\\[~]|€";

/// The segments of a text: 160 septets, or 70 units where a character is not in the alphabet; 153
/// and 67 where there is more than one.
#[must_use]
pub fn segments(text: &str) -> u32 {
    let septets = text.chars().map(septets).sum::<Option<usize>>();
    let (length, single, several) = match septets {
        Some(septets) => (septets, 160, 153),
        None => (text.encode_utf16().count(), 70, 67),
    };
    let count = if length <= single { 1 } else { length.div_ceil(several) };
    u32::try_from(count).unwrap_or(u32::MAX)
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
}
