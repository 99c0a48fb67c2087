//! The load generator: closed loops for throughput, an open loop for latency.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::http::Client;

/// The results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Answered 2xx.
    pub accepted: u64,
    pub refused: u64,
}

impl Tally {
    fn count(&mut self, status: u16) {
        if status < 300 {
            self.accepted += 1;
        } else {
            self.refused += 1;
        }
    }

    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
    }
}

/// The requests to send: each connection repeats them by itself, and each begins at another place.
#[derive(Clone)]
pub struct Requests(Arc<[Vec<u8>]>);

impl From<Vec<u8>> for Requests {
    fn from(request: Vec<u8>) -> Self {
        Self([request].into())
    }
}

impl FromIterator<Vec<u8>> for Requests {
    fn from_iter<T: IntoIterator<Item = Vec<u8>>>(requests: T) -> Self {
        Self(requests.into_iter().collect())
    }
}

/// Every connection sends its next request when the last was answered, until the time is over or `most` are sent.
pub async fn closed_loop(
    address: SocketAddr,
    requests: impl Into<Requests>,
    connections: usize,
    time: Duration,
    most: u64,
) -> Result<Tally> {
    let requests = requests.into();
    let end = Instant::now() + time;
    let share = most.div_ceil(connections as u64);
    let mut loops = JoinSet::new();
    for place in 0..connections {
        loops.spawn(one_loop(address, requests.clone(), place, end, share));
    }
    let mut tally = Tally::default();
    while let Some(result) = loops.join_next().await {
        tally.add(result??);
    }
    Ok(tally)
}

async fn one_loop(
    address: SocketAddr,
    Requests(requests): Requests,
    place: usize,
    end: Instant,
    most: u64,
) -> Result<Tally> {
    let mut client = Client::connect(address).await?;
    let mut tally = Tally::default();
    let mut left = requests.iter().cycle().skip(place % requests.len().max(1));
    while Instant::now() < end
        && tally.accepted < most
        && let Some(request) = left.next()
    {
        let status = client.send(request).await.context("the gateway hung up")?;
        tally.count(status);
        if status >= 300 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(tally)
}

/// Sends `rate` requests a second, whether earlier ones are answered or not. `make` is called when a request is due,
/// so that a time stamped then includes any wait for a connection.
pub async fn open_loop(
    address: SocketAddr,
    rate: f64,
    time: Duration,
    make: impl Fn() -> Vec<u8>,
    answered: impl Fn(Duration) + Clone + Send + 'static,
) -> Result<Tally> {
    let idle: Arc<Mutex<Vec<Client>>> = Arc::default();
    let began = Instant::now();
    let mut sent = 0_u64;
    let mut requests = JoinSet::new();
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            requests.spawn(one_request(address, Arc::clone(&idle), make(), answered.clone()));
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut tally = Tally::default();
    while let Some(status) = requests.join_next().await {
        tally.count(status??);
    }
    Ok(tally)
}

async fn one_request(
    address: SocketAddr,
    idle: Arc<Mutex<Vec<Client>>>,
    request: Vec<u8>,
    answered: impl Fn(Duration),
) -> Result<u16> {
    let began = Instant::now();
    let free = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut client = match free {
        Some(client) => client,
        None => Client::connect(address).await?,
    };
    let status = client.send(&request).await?;
    answered(began.elapsed());
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    Ok(status)
}

/// Percentiles of some durations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub count: usize,
}

impl Latency {
    /// `None` if nothing was measured.
    pub fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let last = all.len().checked_sub(1)?;
        let at = |share: f64| all[(last as f64 * share) as usize].as_secs_f64() * 1e3;
        Some(Self { p50_ms: at(0.5), p99_ms: at(0.99), count: all.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sink::Sink;
    use super::*;

    #[test]
    fn percentiles_are_taken() {
        let all = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(Latency::of(all), Some(Latency { p50_ms: 50.0, p99_ms: 99.0, count: 100 }));
        assert_eq!(Latency::of(vec![]), None);
    }

    #[tokio::test]
    async fn a_closed_loop_and_the_sink_count_the_same() {
        let sink = Sink::start().await.unwrap();
        let request = Client::prepare("POST", "/quick", sink.address(), &[], b"{}");
        let tally = closed_loop(sink.address(), request, 8, Duration::from_secs(20), 2000).await.unwrap();
        assert_eq!((tally.accepted, tally.refused), (2000, 0));
        assert_eq!(sink.received(), 2000);
    }

    #[tokio::test]
    async fn an_open_loop_keeps_its_rate_and_the_sink_takes_the_time() {
        let sink = Sink::start().await.unwrap();
        let stamp = sink.stamp();
        let make = || Client::prepare("POST", "/quick", sink.address(), &[], stamp().as_bytes());
        let tally = open_loop(sink.address(), 500.0, Duration::from_millis(400), make, |_| ()).await.unwrap();
        assert!((100..=200).contains(&tally.accepted), "{tally:?}");
        let latency = Latency::of(sink.take_latencies()).unwrap();
        assert_eq!(latency.count as u64, tally.accepted);
        assert!(latency.p50_ms > 0.0 && latency.p50_ms < 100.0, "{latency:?}");
    }
}
