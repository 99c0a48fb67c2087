//! One call of a guest: in an instance of its own, and every way that it can end.

use std::{sync::Arc, time::Duration};

use wasmtime::{Store, Trap};

use super::{
    answer::Invalid,
    guest::{self, Guest},
    sandbox::Sandbox,
};
use angarium_domain::{provider::Judgement, redaction::Redactor};

/// A fault's detail is cut here, in bytes.
const MAX_DETAIL: usize = 1 << 10;

/// The result of a call and its usage. The usage stands beside the result, because a call that failed used something
/// too.
#[derive(Debug)]
pub struct Called<T> {
    pub result: Result<T, CallError>,
    pub usage: Usage,
}

/// The resources that a call used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time, instantiation and the way of the data in and out included.
    pub cpu: Duration,
    /// Time on the wall, the wait for a place left out.
    pub wall: Duration,
    /// The most linear memory at a time, in bytes.
    pub peak_memory: u64,
}

/// Why a call gave no step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// A verdict on all deliveries of the call: the guest's, or the host's if the input is larger than a guest may
    /// receive. Nothing was sent by this step.
    #[error("{}", .0.message)]
    Judged(Box<Judgement>),
    /// The guest failed.
    #[error(transparent)]
    Broken(#[from] GuestFault),
}

/// How a guest failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.as_str())]
pub struct GuestFault {
    pub kind: GuestFaultKind,
    /// One sentence for a person, at most 1 KiB; with the guest's last error line, if it logged one.
    pub detail: String,
}

/// The kind of a failure; its word stands in the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestFaultKind {
    /// It panicked or broke a rule of the machine.
    Trap,
    /// It ran too long.
    Deadline,
    /// It asked for more memory, or a larger table, than it may have.
    Memory,
    /// It returned more than it may.
    Output,
    /// It wants to carry more than [`super::MAX_STATE`] to the next step.
    State,
    /// The contract does not allow the returned value.
    InvalidAnswer,
    /// The transmission that it describes can't be one: a URL, a header or an address is
    /// malformed. Often the message or the connection brought that in, so it doesn't speak
    /// against the component.
    InvalidTransmission,
    /// The host could not run it; the guest is not to blame.
    Host,
}

impl GuestFaultKind {
    /// The word in the API, the database and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::State => "state",
            Self::InvalidAnswer => "invalid_answer",
            Self::InvalidTransmission => "invalid_transmission",
            Self::Host => "host",
        }
    }

    /// Whether it speaks against the component, and so counts towards its quarantine.
    #[must_use]
    pub const fn is_the_guests(self) -> bool {
        match self {
            Self::Trap | Self::Deadline | Self::Memory | Self::Output | Self::State | Self::InvalidAnswer => true,
            Self::InvalidTransmission | Self::Host => false,
        }
    }
}

impl CallError {
    /// Whether it counts against the component: the argument of [`super::Registry::report`].
    #[must_use]
    pub const fn is_the_guests(&self) -> bool {
        match self {
            Self::Judged(_) => false,
            Self::Broken(fault) => fault.kind.is_the_guests(),
        }
    }
}

impl From<Invalid> for GuestFault {
    fn from(invalid: Invalid) -> Self {
        let kind = invalid.kind;
        let mut detail = invalid.to_string();
        guest::cut(&mut detail, MAX_DETAIL);
        Self { kind, detail }
    }
}

/// Runs one call in a store of its own, which is gone when this returns. `input` is how many bytes
/// it is given.
pub(super) fn run<T>(
    sandbox: &Sandbox,
    provider: &Arc<str>,
    input: usize,
    redactor: &Arc<Redactor>,
    call: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<T>,
) -> (Result<T, GuestFault>, Usage) {
    let _place = sandbox.place();
    let mut store = Guest::store(sandbox, Arc::clone(provider), input, Arc::clone(redactor));
    let result = call(&mut store);
    // The instance goes first, so that its going counts.
    let guest = store.into_data();
    (result.map_err(|error| fault(&guest, &error)), guest.usage())
}

fn fault(guest: &Guest, error: &wasmtime::Error) -> GuestFault {
    let kind = guest.stopped().unwrap_or_else(|| kind(error));
    let mut detail = error.root_cause().to_string();
    if let Some(line) = guest.last_error() {
        detail = format!("{detail}; its last error line: {line}");
    }
    guest::cut(&mut detail, MAX_DETAIL);
    GuestFault { kind, detail }
}

/// Returns the cause of a call's end that the host did not stop. The runtime gives a type to traps only; the others are
/// refusals of the guest's return value.
fn kind(error: &wasmtime::Error) -> GuestFaultKind {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() || error.is::<std::io::Error>() {
        return GuestFaultKind::Host;
    }
    if error.is::<Trap>() {
        return GuestFaultKind::Trap;
    }
    if error.root_cause().to_string().contains("fuel allocated for hostcalls") {
        return GuestFaultKind::Output;
    }
    GuestFaultKind::InvalidAnswer
}
