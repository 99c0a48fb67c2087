//! The host's data for one call: the guest's log, its memory and its time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cpu_time::ThreadTime;
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};

use super::{
    CallLimits,
    call::{GuestFaultKind, Usage},
    sandbox::Sandbox,
    speech,
};
use angarium_domain::redaction::Redactor;

/// A line of a guest's log is cut here, in bytes.
const MAX_LINE: usize = 4 << 10;

/// The levels of the contract's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The host's side of one call; it lives in the store and goes with it.
pub(super) struct Guest {
    provider: Arc<str>,
    limits: CallLimits,
    /// CPU time that it may take.
    deadline: Duration,
    began: Instant,
    /// The thread's CPU time when the call began.
    cpu_began: Duration,
    memory: usize,
    peak_memory: usize,
    lines: u32,
    last_error: Option<String>,
    /// Hides the connection's secrets in the guest's log.
    redactor: Arc<Redactor>,
    stopped: Option<GuestFaultKind>,
}

/// The reason for which the host stopped a guest; [`Guest::stopped`] has the kind.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stopped(String);

impl Guest {
    /// A store for one call, on the thread that makes the call.
    pub(super) fn store(sandbox: &Sandbox, provider: Arc<str>, input: usize, redactor: Arc<Redactor>) -> Store<Self> {
        let guest = Self {
            provider,
            limits: *sandbox.limits(),
            deadline: sandbox.limits().deadline_of(input),
            began: Instant::now(),
            cpu_began: ThreadTime::now().as_duration(),
            memory: 0,
            peak_memory: 0,
            lines: 0,
            last_error: None,
            redactor,
            stopped: None,
        };
        let output = guest.limits.output;
        let mut store = Store::new(sandbox.engine(), guest);
        store.limiter(|guest| guest);
        store.set_hostcall_fuel(output);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| store.data_mut().look().map(|()| UpdateDeadline::Continue(1)));
        store
    }

    /// Returns the reason for which the host stopped the guest, if it did.
    pub(super) const fn stopped(&self) -> Option<GuestFaultKind> {
        self.stopped
    }

    /// The last line that the guest logged as an error: the message of a panic, when it trapped.
    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { cpu: self.cpu(), wall: self.began.elapsed(), peak_memory: self.peak_memory as u64 }
    }

    /// Writes one line to the operator's log.
    pub(super) fn log(&mut self, level: Level, mut line: String) {
        speech::text(&mut line, &self.redactor);
        cut(&mut line, MAX_LINE);
        if self.lines < self.limits.log_lines {
            emit(&self.provider, level, &line);
        } else if self.lines == self.limits.log_lines {
            tracing::warn!(target: "provider", { provider.name = &*self.provider }, "further log lines of this call are dropped");
        }
        self.lines = self.lines.saturating_add(1);
        if level == Level::Error {
            self.last_error = Some(line);
        }
    }

    fn cpu(&self) -> Duration {
        ThreadTime::now().as_duration().saturating_sub(self.cpu_began)
    }

    /// Looks at the clocks, once a tick.
    fn look(&mut self) -> wasmtime::Result<()> {
        let (deadline, patience) = (self.deadline, self.limits.patience);
        if self.cpu() >= deadline {
            return Err(self.stop(GuestFaultKind::Deadline, over_time("of CPU time", deadline)));
        }
        if self.began.elapsed() >= patience {
            return Err(self.stop(GuestFaultKind::Host, over_time("since it began", patience)));
        }
        Ok(())
    }

    fn stop(&mut self, kind: GuestFaultKind, why: String) -> wasmtime::Error {
        self.stopped = Some(kind);
        wasmtime::Error::new(Stopped(why))
    }
}

fn over_time(which: &str, limit: Duration) -> String {
    format!("no answer after {} ms {which}", limit.as_millis())
}

impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.memory.saturating_add(desired.saturating_sub(current));
        if wanted > self.limits.memory {
            let why = format!("it asked for {wanted} bytes of memory, {} are allowed", self.limits.memory);
            return Err(self.stop(GuestFaultKind::Memory, why));
        }
        self.memory = wanted;
        self.peak_memory = self.peak_memory.max(wanted);
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.limits.table_elements {
            let why = format!("it asked for a table of {desired} elements, {} are allowed", self.limits.table_elements);
            return Err(self.stop(GuestFaultKind::Memory, why));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.instances as usize
    }

    fn tables(&self) -> usize {
        self.limits.tables as usize
    }

    fn memories(&self) -> usize {
        self.limits.memories as usize
    }
}

fn emit(provider: &str, level: Level, line: &str) {
    match level {
        Level::Trace => tracing::trace!(target: "provider", { provider.name = provider }, "{line}"),
        Level::Debug => tracing::debug!(target: "provider", { provider.name = provider }, "{line}"),
        Level::Info => tracing::info!(target: "provider", { provider.name = provider }, "{line}"),
        Level::Warn => tracing::warn!(target: "provider", { provider.name = provider }, "{line}"),
        Level::Error => tracing::error!(target: "provider", { provider.name = provider }, "{line}"),
    }
}

/// Cuts a text to this number of bytes, at a character's end.
pub(super) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
    }
}
