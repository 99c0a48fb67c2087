//! The legs of a message: its channels in order of preference, one or several. One function decides about the others
//! when one of them has moved. Pure.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    attempt::FallbackReason,
    delivery::DeliveryState,
    ids::ConnectionId,
    message::{Address, Channel, Content},
};

/// The most channels of a message: a leg's number is four bits of its id.
pub const MOST: usize = 16;

/// The channels to try: one after another until one has reached the result that the message `wants`, or all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LegMode {
    /// One after another, until one has reached the wanted result.
    #[default]
    First,
    /// All of them, at once.
    All,
}

/// The result after which no further channel is tried: a provider took the message, or a receipt says that it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wants {
    /// A provider took it.
    #[default]
    Sent,
    /// A receipt says that it arrived.
    Delivered,
}

/// One channel of a message: how it goes, to whom, and what.
#[derive(Debug, Clone)]
pub struct Leg {
    pub channel: Channel,
    /// Pins it to one connection, past the routes.
    pub connection: Option<ConnectionId>,
    /// Seconds from its beginning, after which it is given up.
    pub timeout: Option<u32>,
    /// Seconds for which a receipt is waited for once it was sent.
    pub receipt_window: Option<u32>,
    /// `None` if the connection names the recipient.
    pub to: Option<Address>,
    pub content: Content,
    /// How many files travel with it.
    pub attachments: u32,
}

impl Leg {
    /// A leg on this channel with nothing else.
    #[must_use]
    pub fn on(channel: Channel) -> Self {
        Self {
            channel,
            connection: None,
            timeout: None,
            receipt_window: None,
            to: None,
            content: Content::default(),
            attachments: 0,
        }
    }

    /// Returns the recipient for lists: empty if the connection names it.
    #[must_use]
    pub fn recipient(&self) -> &str {
        self.to.as_ref().map_or("", |to| &to.address)
    }

    /// Returns the same with the excerpt of its content.
    #[must_use]
    pub fn excerpt(&self) -> Self {
        let Self { channel, connection, timeout, receipt_window, to, content, attachments } = self;
        Self {
            channel: channel.clone(),
            connection: *connection,
            timeout: *timeout,
            receipt_window: *receipt_window,
            to: to.clone(),
            content: content.excerpt(),
            attachments: *attachments,
        }
    }
}

/// The channels of a message, in order of preference: at least one, at most [`MOST`].
#[derive(Debug, Clone)]
pub struct Legs {
    mode: LegMode,
    wants: Wants,
    first: Leg,
    further: Vec<Leg>,
    /// The client named a list: each leg has a state of its own from the beginning, and answers show it.
    is_list: bool,
    /// Of a leg apart from the others: all channels of its message. Empty for a whole message.
    channels: Vec<Channel>,
}

impl Legs {
    /// The only leg of a message that names no list.
    #[must_use]
    pub const fn single(leg: Leg) -> Self {
        let (mode, wants) = (LegMode::First, Wants::Sent);
        Self { mode, wants, first: leg, further: Vec::new(), is_list: false, channels: Vec::new() }
    }

    /// The legs of a message that names a list; `None` unless there are 1 to [`MOST`].
    #[must_use]
    pub fn list(mode: LegMode, wants: Wants, legs: Vec<Leg>) -> Option<Self> {
        if legs.len() > MOST {
            return None;
        }
        let mut legs = legs.into_iter();
        let first = legs.next()?;
        Some(Self { mode, wants, first, further: legs.collect(), is_list: true, channels: Vec::new() })
    }

    /// The leg of number 0; of a leg apart from the others, that one.
    #[must_use]
    pub const fn first(&self) -> &Leg {
        &self.first
    }

    /// The same to be changed.
    pub const fn first_mut(&mut self) -> &mut Leg {
        &mut self.first
    }

    /// The leg of this number.
    #[must_use]
    pub fn get(&self, number: u8) -> Option<&Leg> {
        match usize::from(number).checked_sub(1) {
            None => Some(&self.first),
            Some(place) => self.further.get(place),
        }
    }

    /// Returns the legs in order: the place is the leg's number.
    pub fn iter(&self) -> impl Iterator<Item = &Leg> {
        std::iter::once(&self.first).chain(&self.further)
    }

    /// The same to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        std::iter::once(&mut self.first).chain(&mut self.further)
    }

    /// Whether the client named a list, be it of one channel.
    #[must_use]
    pub const fn is_list(&self) -> bool {
        self.is_list
    }

    /// Returns a JSON pointer to a leg in the client's message, for errors.
    #[must_use]
    pub fn pointer(&self, number: u8) -> String {
        if self.is_list { format!("/channels/{number}") } else { String::new() }
    }

    /// How they follow each other.
    #[must_use]
    pub fn policy(&self) -> LegPolicy {
        let count = u8::try_from(1 + self.further.len()).unwrap_or(u8::MAX);
        LegPolicy { mode: self.mode, wants: self.wants, count }
    }

    /// All channels of the message, in order.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        let whole = self.channels.is_empty();
        self.channels.iter().chain(self.iter().map(|leg| &leg.channel).filter(move |_| whole))
    }

    /// Returns a leg apart from the others, of which only the channels stay known, since rules read them.
    #[must_use]
    pub fn apart(&self, number: u8) -> Option<Self> {
        Some(self.with_only(self.get(number)?.clone()))
    }

    /// Returns the same legs with this one in place of all of them; their channels stay known.
    #[must_use]
    pub fn with_only(&self, leg: Leg) -> Self {
        let Self { mode, wants, is_list, .. } = *self;
        Self { mode, wants, first: leg, further: Vec::new(), is_list, channels: self.channels().cloned().collect() }
    }
}

impl IntoIterator for Legs {
    type Item = Leg;
    type IntoIter = std::iter::Chain<std::iter::Once<Leg>, std::vec::IntoIter<Leg>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.further)
    }
}

/// How the legs of a message follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegPolicy {
    pub mode: LegMode,
    pub wants: Wants,
    /// How many legs there are.
    pub count: u8,
}

impl LegPolicy {
    /// The legs that begin when the message is due.
    #[must_use]
    pub const fn at_first(self) -> std::ops::Range<u8> {
        match self.mode {
            LegMode::First => 0..1,
            LegMode::All => 0..self.count,
        }
    }
}

/// The state of the wait for a leg's receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegReceipt {
    /// The wait has not begun.
    NotAwaited,
    Awaited,
    /// It has not come within its window.
    Missing,
}

/// A leg that has begun, with its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    pub number: u8,
    pub state: DeliveryState,
    /// Whether a provider took it, whatever receipts said since.
    pub handed_over: bool,
    pub receipt: LegReceipt,
}

/// The next step of a message, derived from the states of its legs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LegStep {
    /// The leg that begins now, and why.
    pub begin: Option<(u8, FallbackReason)>,
    /// Legs that are not needed any more, as far as they still wait in the queue.
    pub close: Vec<u8>,
    /// Legs whose receipt is waited for from here on, and no others.
    pub await_receipt: Vec<u8>,
}

/// Returns the next step. `may_begin` is false once the message has expired or lost its content.
#[must_use]
pub fn step(policy: LegPolicy, begun: &[Begun], may_begin: bool) -> LegStep {
    if policy.mode == LegMode::All {
        return LegStep::default();
    }
    if begun.iter().any(|it| is_reached(policy.wants, it.state)) {
        let waits = |it: &&Begun| !it.state.is_end();
        return LegStep { close: begun.iter().filter(waits).map(|it| it.number).collect(), ..LegStep::default() };
    }
    let next = begun.iter().map(|it| it.number + 1).max().unwrap_or(0);
    // A leg that a provider took counts as sent for good, whatever receipts said since.
    let was_met = policy.wants == Wants::Sent && begun.iter().any(|it| it.handed_over);
    if was_met || !may_begin || next >= policy.count {
        return LegStep::default();
    }
    let waits = |it: &&Begun| awaits_receipt(policy.wants, it.state) && it.receipt != LegReceipt::Missing;
    LegStep {
        begin: begun.iter().all(|it| is_given_up(policy.wants, it)).then(|| (next, reason(begun))),
        close: Vec::new(),
        await_receipt: begun.iter().filter(waits).map(|it| it.number).collect(),
    }
}

/// The message's state, once it has one: what its legs come to together.
///
/// With `first`, returns the best result: `delivered` or `sent` by any leg, whatever became of the others. With `all`,
/// returns the worst state, which holds for every leg.
#[must_use]
pub fn state(policy: LegPolicy, begun: &[Begun]) -> Option<DeliveryState> {
    let any = |wanted: DeliveryState| begun.iter().any(|it| it.state == wanted).then_some(wanted);
    let is_open = begun.iter().any(|it| !it.state.is_end());
    match policy.mode {
        LegMode::First => any(DeliveryState::Delivered).or_else(|| any(DeliveryState::Sent)).or_else(|| {
            let last = begun.iter().max_by_key(|it| it.number).map(|it| it.state);
            if is_open { None } else { any(DeliveryState::Unknown).or(last) }
        }),
        LegMode::All if is_open => None,
        LegMode::All => begun.iter().max_by_key(|it| (badness(it.state), u8::MAX - it.number)).map(|it| it.state),
    }
}

/// Returns the legs that a retry by hand means: the named one; otherwise with `first` the last that began, and with
/// `all` each that failed.
#[must_use]
pub fn to_retry(policy: LegPolicy, begun: &[Begun], asked: Option<u8>) -> Vec<u8> {
    let done = policy.mode == LegMode::First && begun.iter().any(|it| is_reached(policy.wants, it.state));
    let may = |it: &&Begun| it.state.may_be_retried() && !done;
    let numbers = begun.iter().filter(may).map(|it| it.number);
    match (asked, policy.mode) {
        (Some(asked), _) => numbers.filter(|number| *number == asked).collect(),
        (None, LegMode::All) => numbers.collect(),
        (None, LegMode::First) => {
            let last = begun.iter().map(|it| it.number).max();
            let over = state(policy, begun).is_some_and(DeliveryState::may_be_retried);
            numbers.filter(|number| over && Some(*number) == last).collect()
        }
    }
}

/// Whether the message wants this state.
const fn is_reached(wants: Wants, state: DeliveryState) -> bool {
    match wants {
        Wants::Sent => matches!(state, DeliveryState::Sent | DeliveryState::Delivered),
        Wants::Delivered => matches!(state, DeliveryState::Delivered),
    }
}

/// After a leg that may have been sent, another one follows only once a wanted receipt is missing; otherwise the
/// message would be sent twice in silence.
const fn awaits_receipt(wants: Wants, state: DeliveryState) -> bool {
    matches!(wants, Wants::Delivered) && matches!(state, DeliveryState::Sent | DeliveryState::Unknown)
}

fn is_given_up(wants: Wants, leg: &Begun) -> bool {
    has_failed(leg.state) || (awaits_receipt(wants, leg.state) && leg.receipt == LegReceipt::Missing)
}

const fn has_failed(state: DeliveryState) -> bool {
    matches!(
        state,
        DeliveryState::Failed
            | DeliveryState::Bounced
            | DeliveryState::Expired
            | DeliveryState::Suppressed
            | DeliveryState::Unroutable
    )
}

fn reason(begun: &[Begun]) -> FallbackReason {
    match begun.iter().max_by_key(|it| it.number) {
        Some(last) if !has_failed(last.state) => FallbackReason::NoReceipt,
        _ => FallbackReason::ChannelFailed,
    }
}

const fn badness(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Delivered => 0,
        DeliveryState::Sent => 1,
        DeliveryState::Accepted | DeliveryState::Scheduled | DeliveryState::Queued => 2,
        DeliveryState::Canceled => 3,
        DeliveryState::Unknown => 4,
        DeliveryState::Failed
        | DeliveryState::Bounced
        | DeliveryState::Expired
        | DeliveryState::Suppressed
        | DeliveryState::Unroutable => 5,
    }
}

#[cfg(test)]
mod tests {
    use DeliveryState::*;

    use super::*;

    fn legs(mode: LegMode, wants: Wants, count: u8) -> LegPolicy {
        LegPolicy { mode, wants, count }
    }

    fn on(channel: &str) -> Leg {
        Leg::on(channel.parse().unwrap())
    }

    #[test]
    fn one_leg_is_a_list_of_one() {
        let single = Legs::single(on("sms"));
        assert_eq!((single.policy(), single.is_list()), (legs(LegMode::First, Wants::Sent, 1), false));
        assert_eq!((single.policy().at_first(), single.pointer(0).as_str()), (0..1, ""));
        let list = Legs::list(LegMode::All, Wants::Sent, vec![on("sms")]).unwrap();
        assert_eq!((list.policy().at_first(), list.is_list(), list.pointer(0).as_str()), (0..1, true, "/channels/0"));
        assert!(Legs::list(LegMode::First, Wants::Sent, Vec::new()).is_none());
        assert!(Legs::list(LegMode::First, Wants::Sent, vec![on("sms"); MOST + 1]).is_none());
        let most = Legs::list(LegMode::First, Wants::Sent, vec![on("sms"); MOST]).unwrap();
        assert_eq!((most.policy().count, most.into_iter().count()), (16, MOST));
    }

    #[test]
    fn a_leg_apart_knows_the_channels_of_its_message() {
        let whole = Legs::list(LegMode::All, Wants::Sent, vec![on("email"), on("sms")]).unwrap();
        let channels = |legs: &Legs| legs.channels().map(|it| it.as_str().to_owned()).collect::<Vec<_>>();
        let apart = whole.apart(1).unwrap();
        assert_eq!((apart.first().channel.as_str(), apart.policy().count), ("sms", 1));
        assert_eq!(channels(&apart), channels(&whole));
        assert_eq!(channels(&apart.with_only(on("push"))), ["email", "sms"], "of the message, whatever the leg's");
        assert!(whole.apart(2).is_none() && whole.get(1).is_some());
    }

    fn leg(number: u8, state: DeliveryState) -> Begun {
        Begun { number, state, handed_over: matches!(state, Sent | Delivered), receipt: LegReceipt::NotAwaited }
    }

    #[test]
    fn a_failed_channel_is_followed_at_once_by_the_next() {
        let two = legs(LegMode::First, Wants::Sent, 2);
        for failed in [Failed, Bounced, Expired, Unroutable] {
            let next = step(two, &[leg(0, failed)], true).begin;
            assert_eq!(next, Some((1, FallbackReason::ChannelFailed)), "{failed:?}");
            assert_eq!(step(two, &[leg(0, failed)], false).begin, None, "the message has expired");
        }
        for other in [Queued, Sent, Delivered, Unknown, Canceled] {
            assert_eq!(step(two, &[leg(0, other)], true).begin, None, "{other:?}");
        }
        assert_eq!(step(two, &[leg(0, Failed), leg(1, Failed)], true), LegStep::default(), "there is no third");
    }

    #[test]
    fn what_a_provider_took_is_enough_for_a_message_that_wants_no_more() {
        let two = legs(LegMode::First, Wants::Sent, 2);
        let returned = Begun { handed_over: true, ..leg(0, Bounced) };
        assert_eq!(step(two, &[returned], true), LegStep::default());
        let heard_of = Begun { handed_over: false, ..leg(0, Bounced) };
        assert!(step(two, &[heard_of], true).begin.is_some(), "a receipt said so of an unknown one");
    }

    #[test]
    fn a_missing_receipt_moves_on_and_one_in_time_stops() {
        let two = legs(LegMode::First, Wants::Delivered, 2);
        for state in [Sent, Unknown] {
            let sent = leg(0, state);
            assert_eq!(step(two, &[sent], true), LegStep { await_receipt: vec![0], ..LegStep::default() });
            let waits = Begun { receipt: LegReceipt::Awaited, ..sent };
            assert_eq!(step(two, &[waits], true), LegStep { await_receipt: vec![0], ..LegStep::default() });
            let missing = Begun { receipt: LegReceipt::Missing, ..sent };
            assert_eq!(step(two, &[missing], true).begin, Some((1, FallbackReason::NoReceipt)));
            let late = [Begun { state: Delivered, ..missing }, leg(1, Queued)];
            assert_eq!(step(two, &late, true), LegStep { close: vec![1], ..LegStep::default() });
        }
        assert_eq!(step(two, &[leg(0, Failed), leg(1, Sent)], true), LegStep::default(), "nobody comes after it");
    }

    #[test]
    fn a_state_is_what_was_reached_or_what_holds_for_all() {
        let first = legs(LegMode::First, Wants::Delivered, 3);
        for (begun, expected) in [
            (vec![leg(0, Queued)], None),
            (vec![leg(0, Sent), leg(1, Queued)], Some(Sent)),
            (vec![leg(0, Delivered), leg(1, Canceled)], Some(Delivered)),
            (vec![leg(0, Failed), leg(1, Queued)], None),
            (vec![leg(0, Failed), leg(1, Unroutable)], Some(Unroutable)),
            (vec![leg(0, Unknown), leg(1, Failed)], Some(Unknown)),
        ] {
            assert_eq!(state(first, &begun), expected, "{begun:?}");
        }
        let all = legs(LegMode::All, Wants::Sent, 2);
        for (states, expected) in [
            ([Sent, Queued], None),
            ([Sent, Delivered], Some(Sent)),
            ([Delivered, Delivered], Some(Delivered)),
            ([Delivered, Bounced], Some(Bounced)),
            ([Expired, Bounced], Some(Expired)),
            ([Unknown, Canceled], Some(Unknown)),
        ] {
            assert_eq!(state(all, &[leg(0, states[0]), leg(1, states[1])]), expected, "{states:?}");
        }
    }

    #[test]
    fn a_retry_by_hand_means_what_failed() {
        let first = legs(LegMode::First, Wants::Delivered, 3);
        assert_eq!(to_retry(first, &[leg(0, Failed), leg(1, Bounced)], None), [1]);
        assert_eq!(to_retry(first, &[leg(0, Failed), leg(1, Bounced)], Some(0)), [0]);
        assert!(to_retry(first, &[leg(0, Failed), leg(1, Delivered)], Some(0)).is_empty());
        assert!(to_retry(first, &[leg(0, Failed), leg(1, Queued)], None).is_empty());
        let all = legs(LegMode::All, Wants::Sent, 3);
        assert_eq!(to_retry(all, &[leg(0, Failed), leg(1, Sent), leg(2, Unknown)], None), [0, 2]);
    }

    /// The legs of a message begin one after another, one at a time, none after the message has its wanted result, and
    /// none is left out before that.
    #[test]
    fn legs_follow_each_other_until_the_message_has_what_it_wants() {
        let mut random = crate::seed::rng();
        for _ in 0..20_000 {
            let wants = random.choice([Wants::Sent, Wants::Delivered]).unwrap();
            let legs = legs(LegMode::First, wants, random.u8(1..5));
            let mut begun = vec![leg(0, Queued)];
            for _ in 0..random.u8(0..20) {
                happens(&mut begun, &mut random);
                let met = begun.iter().any(|it| is_reached(wants, it.state));
                let was_met = met || (wants == Wants::Sent && begun.iter().any(|it| it.handed_over));
                let next = step(legs, &begun, true);
                let told = format!("{wants:?} {begun:?} {next:?}");
                let why = || &told;
                assert!(!(was_met && next.begin.is_some()), "{}", why());
                for number in &next.close {
                    assert!(met && !begun[usize::from(*number)].state.is_end(), "{}", why());
                }
                if let Some((number, _)) = next.begin {
                    assert_eq!(usize::from(number), begun.len(), "{}", why());
                    assert!(begun.iter().all(|it| it.state.is_end()), "{}", why());
                }
                let stuck = begun.iter().all(|it| has_failed(it.state)) && begun.len() < usize::from(legs.count);
                assert!(was_met || !stuck || next.begin.is_some(), "{}", why());
                apply(&next, &mut begun);
                assert!(begun.iter().filter(|it| !it.state.is_end()).count() <= 1, "{}", why());
                assert_eq!(step(legs, &begun, true).begin, None, "a step is taken once; {}", why());
                let open = begun.iter().any(|it| !it.state.is_end());
                assert!(state(legs, &begun).is_some() || open, "{}", why());
            }
        }
    }

    /// An attempt's end, a receipt, or the end of a window.
    fn happens(begun: &mut [Begun], random: &mut fastrand::Rng) {
        let chosen = random.usize(0..begun.len());
        let leg = &mut begun[chosen];
        leg.state = match leg.state {
            Queued => random.choice([Queued, Sent, Failed, Expired, Unroutable, Unknown, Canceled]).unwrap(),
            Sent | Unknown if leg.receipt == LegReceipt::Awaited && random.bool() => {
                leg.receipt = LegReceipt::Missing;
                leg.state
            }
            Sent | Unknown => random.choice([leg.state, Delivered, Failed, Bounced]).unwrap(),
            ended => random.choice([ended, ended, Delivered]).unwrap(),
        };
        leg.handed_over |= leg.state == Sent;
    }

    fn apply(step: &LegStep, begun: &mut Vec<Begun>) {
        for number in &step.close {
            begun[usize::from(*number)].state = Canceled;
        }
        for number in &step.await_receipt {
            begun[usize::from(*number)].receipt = LegReceipt::Awaited;
        }
        if let Some((number, _)) = step.begin {
            begun.push(leg(number, Queued));
        }
    }
}
