//! What scripts are given beside the language itself. Each function's comment is its text in the
//! reference. All are pure: the time and the chance are those that the caller gave.

use jiff::{Timestamp, civil, tz::TimeZone};
use rhai::{Array, Dynamic, EvalAltResult, ImmutableString, Map, Module, Position, plugin::*};
use sha2::{Digest, Sha256};

use super::{Fallible, budget};
use crate::domain::country::Country;

/// All of them.
pub(super) fn module() -> Module {
    exported_module!(functions)
}

// The macro unwraps arguments that the engine has already matched by number and type.
#[allow(clippy::unwrap_used)]
#[export_module]
mod functions {
    // What a hook answers.

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
    /// `retry`: another round after so many seconds.
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

    /// The time of the decision, in UTC: `"2026-03-01T12:00:00Z"`. It stands still within a run.
    #[rhai_fn(volatile)]
    pub fn now() -> String {
        budget::now().to_string()
    }
    /// Whether a name is one of a time zone, such as `"Europe/Stockholm"`.
    pub fn is_zone(name: &str) -> bool {
        super::zone(name).is_ok()
    }
    /// What calendar and clock show in a zone: `#{year, month, day, hour, minute, second, weekday}`
    /// with `weekday` from 1 (Monday) to 7, `date` (`"2026-03-01"`), and `offset` from UTC in
    /// seconds.
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
    /// The first time after `time` at which the clock in a zone shows `at` (`"08:00"`), in UTC.
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
    /// A time so many seconds later, or earlier where it is below zero.
    #[rhai_fn(return_raw)]
    pub fn add_seconds(time: &str, seconds: i64) -> Fallible<String> {
        let moment = super::moment(time)?;
        let later = moment.as_second().checked_add(seconds).and_then(|it| Timestamp::from_second(it).ok());
        later.map(|it| it.to_string()).ok_or_else(|| super::fault("a time that is too far away"))
    }
    /// The seconds from one time to another; below zero where the second is the earlier one.
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
    /// One of the names of a map of shares, as often as its share says, and for one key always the
    /// same: `variant(message.to, "subject line", #{a: 90, b: 10})`.
    #[rhai_fn(return_raw)]
    pub fn variant(key: &str, salt: &str, shares: Map) -> Fallible<String> {
        super::variant(super::bucket(key, salt), &shares)
    }
    /// A number from 0 to below 1 by lot; it stands still within a run.
    #[rhai_fn(volatile)]
    pub fn chance() -> f64 {
        budget::chance()
    }

    // Addresses.

    /// The country that a telephone number (`+46 …`) belongs to, in two capital letters, or `()`.
    pub fn phone_country(number: &str) -> Dynamic {
        super::country("sms", number)
    }
    /// Whether a text is a telephone number with its country's code: `+` and 7 to 15 digits, with
    /// or without blanks, dots, dashes and brackets.
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
    /// What stands before the `@` of a mail address, or `()`.
    pub fn mail_user(address: &str) -> Dynamic {
        super::mail_parts(address).map_or(Dynamic::UNIT, |(user, _)| user.into())
    }
    /// The country of a mail address's domain, in two capital letters, or `()` where it tells none.
    pub fn mail_country(address: &str) -> Dynamic {
        super::country("email", address)
    }
    /// The country that an address of a channel lies in, or `()`.
    pub fn address_country(channel: &str, address: &str) -> Dynamic {
        super::country(channel, address)
    }

    // Texts, lists and numbers.

    /// Whether a text is as a pattern says, capitals or not: `*` stands for anything, `?` for one
    /// character.
    pub fn like(text: &str, pattern: &str) -> bool {
        let fold = |it: &str| it.to_lowercase().chars().collect::<Vec<_>>();
        super::like(&fold(text), &fold(pattern))
    }
    /// The words of a text in small letters, without the marks around them.
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
        numbers.sum::<Option<f64>>().ok_or_else(|| super::fault("`sum` adds numbers only"))
    }
    /// A number, or a text that is one (`"12.50"`), as a number; anything else is `()`.
    pub fn number(value: Dynamic) -> Dynamic {
        super::number(&value).map_or(Dynamic::UNIT, Dynamic::from_float)
    }
    /// The first argument, or the second where it is `()`.
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
    text.parse().map_err(|_| fault(format!("`{text}` is not a time such as 2026-03-01T12:00:00Z")))
}

fn zone(name: &str) -> Fallible<TimeZone> {
    TimeZone::get(name).map_err(|_| fault(format!("`{name}` is not a time zone such as Europe/Stockholm")))
}

fn clock(text: &str) -> Fallible<civil::Time> {
    let parts = text.split_once(':').filter(|(hour, minute)| {
        (1..=2).contains(&hour.len()) && minute.len() == 2 && [hour, minute].iter().all(|it| is_digits(it))
    });
    let number = |it: &str| it.parse::<i8>().ok();
    parts
        .and_then(|(hour, minute)| civil::Time::new(number(hour)?, number(minute)?, 0, 0).ok())
        .ok_or_else(|| fault(format!("`{text}` is not a time of day such as 08:30")))
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
    let mut date = after.to_zoned(zone.clone()).date();
    // Two weekends and a day that a zone skipped lie between at the most.
    for _ in 0..8 {
        let found = zone.to_ambiguous_zoned(date.to_datetime(at)).compatible();
        if let Ok(found) = found
            && found.timestamp() > after
            && serves(found.date())
        {
            return Ok(found.timestamp().to_string());
        }
        date = date.tomorrow().map_err(|_| fault("a time that is too far away"))?;
    }
    Err(fault(format!("the clock never shows `{at}` there")))
}

/// The unit separator keeps ("ab", "c") and ("a", "bc") apart.
pub(in crate::rules) fn bucket(key: &str, salt: &str) -> i64 {
    let digest = Sha256::new().chain_update(salt).chain_update([0x1f]).chain_update(key).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    (u64::from_be_bytes(first) % 10_000) as i64
}

fn variant(bucket: i64, shares: &Map) -> Fallible<String> {
    let share = |value: &Dynamic| number(value).filter(|it| it.is_finite() && *it >= 0.0);
    let total = shares.values().map(share).sum::<Option<f64>>().filter(|it| *it > 0.0);
    let total = total.ok_or_else(|| fault("shares are numbers of zero or more, and not all of them zero"))?;
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
    rest.chars().all(marks) && (7..=15).contains(&rest.bytes().filter(u8::is_ascii_digit).count())
}

fn mail_parts(address: &str) -> Option<(&str, &str)> {
    address.trim().rsplit_once('@').filter(|(user, domain)| !user.is_empty() && !domain.is_empty())
}

/// By going back to the last `*` only: the time is bounded by the product of the lengths, and a
/// budget that is used up ends it.
fn like(text: &[char], pattern: &[char]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut star = None;
    while at < text.len() {
        match pattern.get(of) {
            Some('*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(c) if *c == '?' || *c == text[at] => {
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

fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’');
    words.filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn join(list: &[Dynamic], separator: &str) -> Fallible<String> {
    let mut joined = String::new();
    for (nth, item) in list.iter().enumerate() {
        if item.is_array() || item.is_map() {
            return Err(fault("`join` takes a list of plain values"));
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
