//! The functions that scripts have beside the language itself. Each function's comment is its text in the reference.
//! All are pure: the time and the chance are those that the caller gave.

use jiff::{
    SignedDuration, Timestamp, civil,
    tz::{AmbiguousOffset, TimeZone},
};
use rhai::{Array, Dynamic, EvalAltResult, ImmutableString, Map, Module, Position, plugin::*};
use sha2::{Digest, Sha256};

use super::{Fallible, budget};
use angarium_domain::{
    country::Country,
    folding::{composed, folded, folded_characters, is_combining_mark},
    timezone,
};

/// All of them.
pub(super) fn module() -> Module {
    exported_module!(functions)
}

// The macro unwraps arguments that the engine has already matched by number and type.
#[allow(clippy::unwrap_used)]
#[export_module]
mod functions {
    // Answers of hooks.

    /// `admit`: the message is accepted as it is. A map with `priority` or `attributes` may be
    /// answered in place of it.
    pub fn allow() -> Map {
        super::answer("allow", [])
    }
    /// `admit`: the message is refused, with a reason that its sender reads.
    pub fn refuse(reason: &str) -> Map {
        super::answer("refuse", [("reason", reason.into())])
    }
    /// `admit`: the message is accepted and sent at a time (RFC 3339) in the future.
    pub fn hold_until(time: &str) -> Map {
        super::answer("hold", [("at", time.into())])
    }
    /// `admit`: as above, with a reason.
    #[rhai_fn(name = "hold_until")]
    pub fn hold_until_because(time: &str, reason: &str) -> Map {
        super::answer("hold", [("at", time.into()), ("reason", reason.into())])
    }
    /// `retry`: another round after this number of seconds.
    pub fn retry_after(seconds: Dynamic) -> Map {
        super::answer("retry", [("after", seconds)])
    }
    /// `retry`: the delivery ends here.
    pub fn give_up(reason: &str) -> Map {
        super::answer("give_up", [("reason", reason.into())])
    }
    /// `retry`: the next candidate is asked at once.
    pub fn fall_back(reason: &str) -> Map {
        super::answer("fall_back", [("reason", reason.into())])
    }

    // Time.

    /// The time of the decision, in UTC: `"2026-03-01T12:00:00Z"`. It does not change within a run.
    #[rhai_fn(volatile)]
    pub fn now() -> String {
        budget::now().to_string()
    }
    /// Whether a name is that of a time zone, such as `"Europe/Stockholm"`. The functions below fail if it is not.
    pub fn is_zone(name: &str) -> bool {
        timezone::exists(name)
    }
    /// The calendar and clock in a zone: `#{year, month, day, hour, minute, second, weekday}` with `weekday` from 1
    /// (Monday) to 7, `date` (`"2026-03-01"`), and `offset` from UTC in seconds.
    #[rhai_fn(return_raw)]
    pub fn local_time(time: &str, zone: &str) -> Fallible<Map> {
        let local = super::moment(time)?.to_zoned(super::zone(zone)?);
        let number = |it: i64| Dynamic::from_int(it);
        Ok([
            ("year", number(local.year().into())),
            ("month", number(local.month().into())),
            ("day", number(local.day().into())),
            ("hour", number(local.hour().into())),
            ("minute", number(local.minute().into())),
            ("second", number(local.second().into())),
            ("weekday", number(local.weekday().to_monday_one_offset().into())),
            ("date", local.date().to_string().into()),
            ("offset", number(local.offset().seconds().into())),
        ]
        .into_iter()
        .map(|(name, value)| (name.into(), value))
        .collect())
    }
    /// Whether the clock in a zone shows a time from `from` until before `until` (`"22:00"`,
    /// `"07:30"`), past midnight where `until` is the earlier one. Where both are the same it is
    /// always so.
    #[rhai_fn(return_raw)]
    pub fn is_between(time: &str, zone: &str, from: &str, until: &str) -> Fallible<bool> {
        let shown = super::moment(time)?.to_zoned(super::zone(zone)?).time();
        Ok(super::within(shown, super::clock(from)?, super::clock(until)?))
    }
    /// The first time after `time` at which the clock in a zone shows `at` (`"08:00"`), in UTC. An hour that the clock
    /// shows twice counts twice: from the first 02:30 on, `"02:30"` is the second one. A time that the clock skips
    /// comes at the moment of the skip: if 02:00 to 03:00 is left out, `"02:30"` is the moment at which it shows 03:00.
    #[rhai_fn(return_raw)]
    pub fn next_time(time: &str, zone: &str, at: &str) -> Fallible<String> {
        super::next(time, zone, at, |_| true)
    }
    /// As `next_time`, on a day from Monday to Friday.
    #[rhai_fn(return_raw)]
    pub fn next_business_time(time: &str, zone: &str, at: &str) -> Fallible<String> {
        super::next(time, zone, at, super::is_business_day)
    }
    /// Whether it is Monday to Friday in a zone, and from `from` until before `until`.
    #[rhai_fn(return_raw)]
    pub fn is_business_time(time: &str, zone: &str, from: &str, until: &str) -> Fallible<bool> {
        let local = super::moment(time)?.to_zoned(super::zone(zone)?);
        let open = super::within(local.time(), super::clock(from)?, super::clock(until)?);
        Ok(open && super::is_business_day(local.date()))
    }
    /// The later of two times; where one of them is `()`, the other. `later(now(), message.send_at)` is when a message is
    /// due: a `send_at` that is past means now.
    #[rhai_fn(return_raw)]
    pub fn later(time: Dynamic, other: Dynamic) -> Fallible<Dynamic> {
        super::later(time, other)
    }
    /// The time this number of seconds later, or earlier if it is negative.
    #[rhai_fn(return_raw)]
    pub fn add_seconds(time: &str, seconds: i64) -> Fallible<String> {
        let moment = super::moment(time)?;
        let later = moment.as_second().checked_add(seconds).and_then(|it| Timestamp::from_second(it).ok());
        later.map(|it| it.to_string()).ok_or_else(|| super::fault("a time that is too far away"))
    }
    /// The seconds from one time to another; negative if the second is the earlier one.
    #[rhai_fn(return_raw)]
    pub fn seconds_between(from: &str, until: &str) -> Fallible<i64> {
        Ok(super::moment(until)?.as_second() - super::moment(from)?.as_second())
    }

    // Shares.

    /// A number from 0 to 9999 that hangs on nothing but its arguments: the same key always has the
    /// same. `salt` names the split, so that two splits are independent.
    pub fn bucket(key: &str, salt: &str) -> i64 {
        super::bucket(key, salt)
    }
    /// The same as a percentage from 0 to below 100: `percent(message.to, "new sender") < 10.0`.
    pub fn percent(key: &str, salt: &str) -> f64 {
        super::bucket(key, salt) as f64 / 100.0
    }
    /// One of the names of a map of shares, as often as its share says, and always the same for one key:
    /// `variant(message.to, "subject line", #{a: 90, b: 10})`.
    #[rhai_fn(return_raw)]
    pub fn variant(key: &str, salt: &str, shares: Map) -> Fallible<String> {
        super::variant(super::bucket(key, salt), &shares)
    }
    /// A random number from 0 to below 1; it does not change within a run.
    #[rhai_fn(volatile)]
    pub fn chance() -> f64 {
        budget::chance()
    }

    // Addresses.

    /// The country that a telephone number (`+46 …`) belongs to, in two capital letters, or `()`.
    pub fn phone_country(number: &str) -> Dynamic {
        super::country("sms", number)
    }
    /// Whether a text is a telephone number with its country's code: `+` and 7 to 15 digits, the first of them not 0,
    /// with or without blanks, dots, dashes and brackets.
    pub fn is_phone(text: &str) -> bool {
        super::is_phone(text)
    }
    /// The digits of a text.
    pub fn digits(text: &str) -> String {
        text.chars().filter(char::is_ascii_digit).collect()
    }
    /// The domain of a mail address in small letters, or `()`.
    pub fn mail_domain(address: &str) -> Dynamic {
        super::mail_parts(address).map_or(Dynamic::UNIT, |(_, domain)| domain.to_lowercase().into())
    }
    /// The part before the `@` of a mail address, or `()`.
    pub fn mail_user(address: &str) -> Dynamic {
        super::mail_parts(address).map_or(Dynamic::UNIT, |(user, _)| user.into())
    }
    /// The country of a mail address's domain, in two capital letters, or `()` if it has none.
    pub fn mail_country(address: &str) -> Dynamic {
        super::country("email", address)
    }
    /// The country that an address of a channel lies in, or `()`.
    pub fn address_country(channel: &str, address: &str) -> Dynamic {
        super::country(channel, address)
    }

    // Texts, lists and numbers.

    /// Whether two texts are equal without regard to case, and however their accents are encoded: `"Straße"` and
    /// `"STRASSE"` are. A value that is no text equals nothing. `==`, `in` and `contains` compare character by
    /// character.
    pub fn same_text(text: Dynamic, other: Dynamic) -> bool {
        super::folded_text(&text).is_some_and(|text| super::folded_text(&other) == Some(text))
    }
    /// Whether a text is a member of a list, compared as by `same_text`.
    pub fn is_one_of(text: Dynamic, list: Array) -> bool {
        let text = super::folded_text(&text);
        text.is_some() && list.iter().any(|item| super::folded_text(item) == text)
    }
    /// Whether a text matches a pattern, compared as by `same_text`: `*` matches anything, `?` one character.
    pub fn like(text: &str, pattern: &str) -> bool {
        let pattern: Vec<_> = folded_characters(pattern).into_iter().map(|(character, _)| character).collect();
        super::like(&folded_characters(text), &pattern)
    }
    /// The words of a text in small letters, with their accents composed, and without the marks around them.
    pub fn words(text: &str) -> Array {
        super::words(text).map(Dynamic::from).collect()
    }
    /// The first word of a text in small letters, or `""`.
    pub fn first_word(text: &str) -> String {
        super::words(text).next().unwrap_or_default()
    }
    /// The members of a list as one text, with `separator` between them.
    #[rhai_fn(return_raw)]
    pub fn join(list: Array, separator: &str) -> Fallible<String> {
        super::join(&list, separator)
    }
    /// The member `field` of each map of a list.
    pub fn pluck(list: Array, field: &str) -> Array {
        list.iter().map(|item| super::member(item, field)).collect()
    }
    /// A copy of a list of maps, those with the smallest `field` first; those without it come last.
    pub fn sorted_by(list: Array, field: &str) -> Array {
        super::sorted_by(list, field)
    }
    /// The sum of a list of numbers.
    #[rhai_fn(return_raw)]
    pub fn sum(list: Array) -> Fallible<f64> {
        let numbers = list.iter().map(super::number);
        numbers.sum::<Option<f64>>().ok_or_else(|| super::fault("`sum` must have a list of numbers"))
    }
    /// A number, or a text that is one (`"12.50"`), as a number; anything else is `()`.
    pub fn number(value: Dynamic) -> Dynamic {
        super::number(&value).map_or(Dynamic::UNIT, Dynamic::from_float)
    }
    /// The first argument, or the second if it is `()`.
    pub fn or_else(value: Dynamic, otherwise: Dynamic) -> Dynamic {
        if value.is_unit() { otherwise } else { value }
    }
}

fn fault(reason: impl Into<String>) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(reason.into().into(), Position::NONE).into()
}

fn answer<const N: usize>(action: &str, members: [(&str, Dynamic); N]) -> Map {
    let action = [("action", Dynamic::from(ImmutableString::from(action)))];
    action.into_iter().chain(members).map(|(name, value)| (name.into(), value)).collect()
}

fn moment(text: &str) -> Fallible<Timestamp> {
    text.parse().map_err(|_| fault(format!("a time must be written as 2026-03-01T12:00:00Z (got `{text}`)")))
}

fn later(time: Dynamic, other: Dynamic) -> Fallible<Dynamic> {
    let moment_of = |time: &Dynamic| match time.as_immutable_string_ref() {
        Ok(text) => moment(&text).map(Some),
        Err(_) if time.is_unit() => Ok(None),
        Err(_) => Err(fault("`later` must have two times, or `()` in place of one")),
    };
    Ok(if moment_of(&time)? >= moment_of(&other)? { time } else { other })
}

fn zone(name: &str) -> Fallible<TimeZone> {
    timezone::named(name).ok_or_else(|| fault(no_zone(name)))
}

/// Why a text is no zone.
pub(super) fn zone_fault(name: &str) -> Option<String> {
    (!timezone::exists(name)).then(|| no_zone(name))
}

fn no_zone(name: &str) -> String {
    format!("the time zone `{name}` does not exist: it must be an IANA name such as `Europe/Stockholm`")
}

fn clock(text: &str) -> Fallible<civil::Time> {
    time_of_day(text).ok_or_else(|| fault(no_clock(text)))
}

/// Why a text is no time of day.
pub(super) fn clock_fault(text: &str) -> Option<String> {
    time_of_day(text).is_none().then(|| no_clock(text))
}

fn no_clock(text: &str) -> String {
    format!("a time of day must be written as `08:30` (got `{text}`)")
}

fn time_of_day(text: &str) -> Option<civil::Time> {
    let parts = text.split_once(':').filter(|(hour, minute)| {
        (1..=2).contains(&hour.len()) && minute.len() == 2 && [hour, minute].iter().all(|it| is_digits(it))
    });
    let number = |it: &str| it.parse::<i8>().ok();
    parts.and_then(|(hour, minute)| civil::Time::new(number(hour)?, number(minute)?, 0, 0).ok())
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn within(shown: civil::Time, from: civil::Time, until: civil::Time) -> bool {
    match from.cmp(&until) {
        std::cmp::Ordering::Less => from <= shown && shown < until,
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Greater => from <= shown || shown < until,
    }
}

fn is_business_day(date: civil::Date) -> bool {
    date.weekday().to_monday_one_offset() <= 5
}

fn next(time: &str, zone: &str, at: &str, serves: impl Fn(civil::Date) -> bool) -> Fallible<String> {
    let (after, zone, at) = (moment(time)?, self::zone(zone)?, clock(at)?);
    // A clock that goes back over midnight shows the day before once more.
    let first = after.to_zoned(zone.clone()).date();
    let mut date = first.yesterday().unwrap_or(first);
    // Two weekends and a day that a zone skipped lie between at the most.
    for _ in 0..9 {
        if serves(date)
            && let Some(found) = shown_on(&zone, date, at).into_iter().flatten().find(|it| *it > after)
        {
            return Ok(found.to_string());
        }
        date = date.tomorrow().map_err(|_| fault("a time that is too far away"))?;
    }
    Err(fault(format!("the clock never shows `{at}` there")))
}

/// Returns when the clock in a zone shows a time on a day: once, twice, or never. A skipped time comes at the moment of
/// the skip, unless the clock skips the rest of the day too.
fn shown_on(zone: &TimeZone, date: civil::Date, at: civil::Time) -> [Option<Timestamp>; 2] {
    let shown = zone.to_ambiguous_timestamp(date.to_datetime(at));
    match shown.offset() {
        AmbiguousOffset::Unambiguous { .. } => [shown.compatible().ok(), None],
        AmbiguousOffset::Fold { .. } => [shown.earlier().ok(), shown.later().ok()],
        AmbiguousOffset::Gap { .. } => {
            // For the time that begins the gap, "later" is the moment of the skip itself.
            let beyond = shown.later().ok().and_then(|it| it.checked_add(SignedDuration::from_nanos(1)).ok());
            let skip = beyond.and_then(|it| zone.preceding(it).next()).map(|it| it.timestamp());
            [skip.filter(|it| it.to_zoned(zone.clone()).date() == date), None]
        }
    }
}

/// The unit separator keeps ("ab", "c") and ("a", "bc") apart.
pub(crate) fn bucket(key: &str, salt: &str) -> i64 {
    let digest = Sha256::new().chain_update(salt).chain_update([0x1f]).chain_update(key).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    (u64::from_be_bytes(first) % 10_000) as i64
}

fn variant(bucket: i64, shares: &Map) -> Fallible<String> {
    let share = |value: &Dynamic| number(value).filter(|it| it.is_finite() && *it >= 0.0);
    let total = shares.values().map(share).sum::<Option<f64>>().filter(|it| *it > 0.0);
    let total = total.ok_or_else(|| fault("shares must be numbers of zero or more, and not all of them zero"))?;
    let mut left = bucket as f64 / 10_000.0 * total;
    let mut last = None;
    for (name, value) in shares {
        let share = share(value).unwrap_or_default();
        if share > 0.0 {
            last = Some(name);
            if left < share {
                break;
            }
        }
        left -= share;
    }
    Ok(last.map(ToString::to_string).unwrap_or_default())
}

fn country(channel: &str, address: &str) -> Dynamic {
    Country::of_address(channel, address).map_or(Dynamic::UNIT, |it| it.as_str().into())
}

fn is_phone(text: &str) -> bool {
    let Some(rest) = text.trim().strip_prefix('+') else { return false };
    let marks = |c: char| c.is_ascii_digit() || " .-()".contains(c);
    !rest.starts_with('0')
        && rest.chars().all(marks)
        && (7..=15).contains(&rest.bytes().filter(u8::is_ascii_digit).count())
}

fn mail_parts(address: &str) -> Option<(&str, &str)> {
    address.trim().rsplit_once('@').filter(|(user, domain)| !user.is_empty() && !domain.is_empty())
}

fn folded_text(value: &Dynamic) -> Option<String> {
    value.as_immutable_string_ref().ok().map(|text| folded(&text))
}

/// Goes back to the last `*` only: the time is bounded by the product of the lengths, and a used-up budget ends it. A
/// `?` matches all folded characters of one character of the text.
fn like(text: &[(char, bool)], pattern: &[char]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut star = None;
    let next = |at: usize| text[at + 1..].iter().position(|(_, begins)| *begins).map_or(text.len(), |it| at + 1 + it);
    while at < text.len() {
        match pattern.get(of) {
            Some('*') => {
                star = Some((of, at));
                of += 1;
            }
            Some('?') => {
                at = next(at);
                of += 1;
            }
            Some(c) if *c == text[at].0 => {
                at += 1;
                of += 1;
            }
            _ => {
                let Some((star_of, star_at)) = star else { return false };
                if budget::check().is_err() {
                    return false;
                }
                star = Some((star_of, star_at + 1));
                at = star_at + 1;
                of = star_of + 1;
            }
        }
    }
    pattern[of..].iter().all(|c| *c == '*')
}

/// A mark that belongs to the letter before it does not end a word.
fn words(text: &str) -> impl Iterator<Item = String> {
    let ends = |c: char| !c.is_alphanumeric() && !is_combining_mark(c) && c != '\'' && c != '’';
    let words: Vec<_> = composed(text).split(ends).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    words.into_iter()
}

fn join(list: &[Dynamic], separator: &str) -> Fallible<String> {
    let mut joined = String::new();
    for (nth, item) in list.iter().enumerate() {
        if item.is_array() || item.is_map() {
            return Err(fault("`join` must have a list of plain values"));
        }
        if nth > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&item.to_string());
        if joined.len() > super::engine::limits::TEXT {
            let too_long = EvalAltResult::ErrorDataTooLarge("Length of string".to_owned(), Position::NONE);
            return Err(too_long.into());
        }
    }
    Ok(joined)
}

fn member(item: &Dynamic, field: &str) -> Dynamic {
    item.as_map_ref().ok().and_then(|map| map.get(field).cloned()).unwrap_or(Dynamic::UNIT)
}

fn sorted_by(list: Array, field: &str) -> Array {
    let mut keyed: Vec<_> = list.into_iter().map(|item| (member(&item, field), item)).collect();
    keyed.sort_by(|(left, _), (right, _)| order_of(left, right));
    keyed.into_iter().map(|(_, item)| item).collect()
}

/// Numbers, then texts, then all the rest: a total order, so that no list upsets the sort.
fn order_of(left: &Dynamic, right: &Dynamic) -> std::cmp::Ordering {
    let text = |it: &Dynamic| it.as_immutable_string_ref().map(|it| it.clone()).ok();
    let plain = |it: &Dynamic| if text(it).is_some() { None } else { number(it) };
    match (plain(left), plain(right)) {
        (Some(left), Some(right)) => left.total_cmp(&right),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => match (text(left), text(right)) {
            (Some(left), Some(right)) => left.cmp(&right),
            (left, right) => right.is_some().cmp(&left.is_some()),
        },
    }
}

fn number(value: &Dynamic) -> Option<f64> {
    let text = || value.as_immutable_string_ref().ok()?.trim().parse::<f64>().ok().filter(|it| it.is_finite());
    value.as_int().map(|it| it as f64).or_else(|_| value.as_float()).ok().or_else(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_at(time: &str, zone: &str, at: &str) -> String {
        next(time, zone, at, |_| true).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_next_time_is_the_first_at_which_the_clock_shows_it() {
        for (time, zone, at, expected) in [
            ("2026-03-02T06:59:59Z", "Europe/Stockholm", "08:00", "2026-03-02T07:00:00Z"),
            ("2026-03-02T07:00:00Z", "Europe/Stockholm", "08:00", "2026-03-03T07:00:00Z"),
            // The clock goes from 03:00 back to 02:00 at 01:00 UTC.
            ("2026-10-25T00:00:00Z", "Europe/Stockholm", "02:30", "2026-10-25T00:30:00Z"),
            ("2026-10-25T00:30:00Z", "Europe/Stockholm", "02:30", "2026-10-25T01:30:00Z"),
            ("2026-10-25T00:45:00Z", "Europe/Stockholm", "02:30", "2026-10-25T01:30:00Z"),
            ("2026-10-25T01:30:00Z", "Europe/Stockholm", "02:30", "2026-10-26T01:30:00Z"),
            ("2026-10-25T00:59:00Z", "Europe/Stockholm", "02:00", "2026-10-25T01:00:00Z"),
            // From 02:00 to 03:00 at 07:00 UTC, and back in November.
            ("2026-11-01T05:30:00Z", "America/New_York", "01:30", "2026-11-01T06:30:00Z"),
            // Havana goes back from 01:00 to 00:00; Beirut over midnight, so that the day before is shown once more.
            ("2026-11-01T04:30:00Z", "America/Havana", "00:30", "2026-11-01T05:30:00Z"),
            ("2026-10-24T20:45:00Z", "Asia/Beirut", "23:30", "2026-10-24T21:30:00Z"),
            // Half an hour.
            ("2026-04-04T14:45:00Z", "Australia/Lord_Howe", "01:45", "2026-04-04T15:15:00Z"),
        ] {
            assert_eq!(next_at(time, zone, at), expected, "{at} after {time} in {zone}");
        }
    }

    #[test]
    fn what_the_clock_skips_comes_when_it_skips_it() {
        for (time, zone, at, expected) in [
            ("2026-03-28T12:00:00Z", "Europe/Stockholm", "02:00", "2026-03-29T01:00:00Z"),
            ("2026-03-28T12:00:00Z", "Europe/Stockholm", "02:30", "2026-03-29T01:00:00Z"),
            ("2026-03-28T12:00:00Z", "Europe/Stockholm", "03:00", "2026-03-29T01:00:00Z"),
            ("2026-03-29T01:00:00Z", "Europe/Stockholm", "02:30", "2026-03-30T00:30:00Z"),
            ("2026-03-08T05:00:00Z", "America/New_York", "02:30", "2026-03-08T07:00:00Z"),
            // Samoa had no 30 December 2011.
            ("2011-12-30T09:00:00Z", "Pacific/Apia", "08:00", "2011-12-30T18:00:00Z"),
        ] {
            assert_eq!(next_at(time, zone, at), expected, "{at} after {time} in {zone}");
            let moment: Timestamp = expected.parse().unwrap();
            let before = moment - SignedDuration::from_secs(1);
            let (from, until) = (clock(at).unwrap(), clock("23:59").unwrap());
            let shown = |it: Timestamp| it.to_zoned(self::zone(zone).unwrap()).time();
            assert!(within(shown(moment), from, until), "at {at} a time that begins then has begun");
            assert!(!within(shown(before), from, until), "and not before");
        }
    }

    #[test]
    fn a_business_day_is_that_of_the_zone() {
        let next = |time: &str| next(time, "Asia/Tokyo", "09:00", is_business_day).unwrap();
        assert_eq!(next("2026-03-06T00:00:00Z"), "2026-03-09T00:00:00Z", "from Friday at nine to Monday");
        assert_eq!(next("2026-03-05T23:59:00Z"), "2026-03-06T00:00:00Z");
    }

    #[test]
    fn what_does_not_exist_is_a_fault_that_says_so() {
        for (time, zone, at, reason) in [
            ("2026-03-02T07:00:00Z", "Europe/Stokholm", "08:00", "the time zone `Europe/Stokholm` does not exist"),
            ("2026-03-02T07:00:00Z", "UTC", "24:00", "a time of day must be written as `08:30` (got `24:00`)"),
            ("yesterday", "UTC", "08:00", "a time must be written as 2026-03-01T12:00:00Z (got `yesterday`)"),
        ] {
            let fault = next(time, zone, at, |_| true).unwrap_err().to_string();
            assert!(fault.contains(reason), "{fault}");
        }
    }

    #[test]
    fn the_later_of_two_times_is_taken_whatever_its_form() {
        let later = |time: &str, other: &str| {
            let value = |it: &str| if it.is_empty() { Dynamic::UNIT } else { it.to_owned().into() };
            super::later(value(time), value(other)).unwrap().to_string()
        };
        for (time, other, expected) in [
            ("2026-03-02T07:00:00Z", "2026-03-02T08:30:00+02:00", "2026-03-02T07:00:00Z"),
            ("2026-03-02T07:00:00Z", "2026-03-02T07:00:00.5Z", "2026-03-02T07:00:00.5Z"),
            ("2026-03-02T07:00:00Z", "", "2026-03-02T07:00:00Z"),
            ("", "2026-03-02T07:00:00Z", "2026-03-02T07:00:00Z"),
            ("", "", ""),
        ] {
            assert_eq!(later(time, other), expected, "{time} and {other}");
        }
        assert!(super::later(7.into(), Dynamic::UNIT).is_err());
    }

    #[test]
    fn a_pattern_is_compared_whatever_the_case() {
        let like = |text: &str, pattern: &str| functions::like(text, pattern);
        for (text, pattern, expected) in [
            ("Straße 7", "STRASSE*", true),
            ("STRASSE", "stra\u{df}e", true),
            ("Stra\u{df}e", "stra?e", true),
            ("Strasse", "stra?e", false),
            ("CAFE\u{301}", "caf?", true),
            ("caf\u{e9}", "*E\u{301}", true),
            ("ΣΊΣΥΦΟΣ", "σίσυφος", true),
            ("abc", "a*c", true),
            ("abc", "a?", false),
            ("", "*", true),
            ("", "?", false),
            ("ISPARTA", "\u{131}sparta", false),
        ] {
            assert_eq!(like(text, pattern), expected, "{text} like {pattern}");
        }
    }

    #[test]
    fn what_is_no_text_is_the_same_as_nothing() {
        let same = |one: Dynamic, other: Dynamic| functions::same_text(one, other);
        assert!(same("Stra\u{df}e".into(), "STRASSE".into()));
        assert!(!same(Dynamic::UNIT, Dynamic::UNIT) && !same(5.into(), "5".into()) && !same("a".into(), Dynamic::UNIT));
        let list: Array = vec![Dynamic::UNIT, 5.into(), "\u{e9}".into()];
        assert!(functions::is_one_of("E\u{301}".into(), list.clone()));
        assert!(!functions::is_one_of(Dynamic::UNIT, list.clone()) && !functions::is_one_of(5.into(), list));
    }

    #[test]
    fn a_telephone_number_begins_with_its_countrys_code() {
        for (text, expected) in [
            ("+46 70-123 45 67", true),
            ("+61 (43) 123-4567", true),
            ("+0701234567", false),
            ("0701234567", false),
            ("+46", false),
            ("+4670123456789012", false),
            ("+46701234567x5", false),
        ] {
            assert_eq!(is_phone(text), expected, "{text}");
        }
    }

    #[test]
    fn a_time_with_an_offset_is_shown_in_the_zone() {
        let local = functions::local_time("2011-08-18T19:03:37.010+01:00", "UTC").unwrap();
        assert_eq!(local["hour"].as_int(), Ok(18));
        let summer = functions::local_time("2026-07-01T12:00:00Z", "Europe/Stockholm").unwrap();
        assert_eq!((summer["hour"].as_int(), summer["offset"].as_int()), (Ok(14), Ok(7200)));
    }

    #[test]
    fn a_mark_does_not_end_a_word() {
        let words = |text: &str| super::words(text).collect::<Vec<_>>();
        assert_eq!(words("ARRE\u{302}T, s'il vous plaît"), ["arr\u{ea}t", "s'il", "vous", "pla\u{ee}t"]);
        assert_eq!(words("नमस्ते दुनिया"), ["नमस्ते", "दुनिया"]);
        assert_eq!(words(" -- STOP!"), ["stop"]);
    }
}
