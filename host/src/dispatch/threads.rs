//! The threads of everything behind the queue: claims, deliveries and the ledger. They are others than those of requests,
//! admission and the renewal of leases: however much there is to deliver, whoever asks for something is heard, and no
//! lease runs out. The system shares the processor between the two, where on the same threads each step of a request
//! would wait behind everything that is under way.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// So many deliveries run before sockets are looked at again. Each may take a component's call, so that the usual 61 of
/// them would make whoever has just come wait for milliseconds at each step.
const POLLS_BETWEEN_EVENTS: u32 = 8;

/// Threads as many as processors. What still runs on them when this is dropped, ends.
pub struct Threads(Option<Runtime>);

impl Threads {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name("deliveries")
            .event_interval(POLLS_BETWEEN_EVENTS)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// What spawns on them.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // An async task may not wait for threads to end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
