//! The receiver of the benchmark's webhooks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::{Reply, Request, Server};

/// How long `/slow` takes.
pub const HOLD: Duration = Duration::from_secs(10);

/// A counting receiver: `/quick` answers at once, `/slow` after [`HOLD`].
#[derive(Debug)]
pub struct Sink {
    server: Server,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    epoch: Instant,
    quick: AtomicU64,
    slow: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

impl Sink {
    /// Listens on a free loopback port.
    pub async fn start() -> Result<Self> {
        let counters = Arc::new(Counters {
            epoch: Instant::now(),
            quick: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            latencies: Mutex::default(),
        });
        let shared = Arc::clone(&counters);
        let server = Server::start(move |request: &Request<'_>| shared.take(request)).await?;
        Ok(Self { server, counters })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// How many arrived at `/quick`.
    pub fn received(&self) -> u64 {
        self.counters.quick.load(Ordering::Relaxed)
    }

    /// How many arrived at `/slow`.
    pub fn received_slow(&self) -> u64 {
        self.counters.slow.load(Ordering::Relaxed)
    }

    /// Makes payloads that carry the time at which they were made.
    pub fn stamp(&self) -> impl Fn() -> String + Clone + use<> {
        let epoch = self.counters.epoch;
        move || format!(r#"{{"type":"bench.stamped","at":{}}}"#, epoch.elapsed().as_nanos())
    }

    /// How long each stamped payload was under way, since the last call.
    pub fn take_latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut self.counters.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until that many have arrived at `/quick`; tells when. Gives up when nothing arrives for ten seconds.
    pub async fn await_received(&self, wanted: u64) -> Result<Instant> {
        let (mut last, mut changed) = (self.received(), Instant::now());
        loop {
            let now = self.received();
            if now >= wanted {
                return Ok(Instant::now());
            }
            if now != last {
                (last, changed) = (now, Instant::now());
            }
            ensure!(changed.elapsed() < Duration::from_secs(10), "{now} of {wanted} arrived, then nothing for 10 s");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Counters {
    fn take(&self, request: &Request<'_>) -> Reply {
        if request.path == "/slow" {
            self.slow.fetch_add(1, Ordering::Relaxed);
            return Reply::new(204, "").after(HOLD);
        }
        self.quick.fetch_add(1, Ordering::Relaxed);
        if let Some(at) = stamped(request.body) {
            let latency = self.epoch.elapsed().saturating_sub(Duration::from_nanos(at));
            self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
        }
        Reply::new(204, "")
    }
}

fn stamped(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(br#"{"type":"bench.stamped","at":"#)?;
    std::str::from_utf8(rest.strip_suffix(b"}")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read() {
        assert_eq!(stamped(br#"{"type":"bench.stamped","at":42}"#), Some(42));
        assert_eq!(stamped(br#"{"type":"bench"}"#), None);
    }
}
