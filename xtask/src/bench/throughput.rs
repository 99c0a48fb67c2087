//! Messages a second: accepted, and delivered end to end; and how long one takes when there is room.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::figures::{Figures, Target};
use super::load::{self, Latency, Requests, Tally};
use super::sink::Sink;
use super::stage::{self, BOTH, Scene, Stage};
use super::{Options, usage};
use crate::http::Client;
use crate::progress::{note, step};

const WARM_UP: Duration = Duration::from_secs(2);
const UNLIMITED: u64 = u64::MAX;

/// Webhooks delivered a second by 64 and by 256 connections, and what one costs; then latency at a tenth of that.
pub async fn end_to_end(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    let sink = Sink::start().await?;
    let scene = stage.scene("end_to_end", BOTH, &sink).await?;
    let mut peak = 0.0_f64;
    for connections in [64, 256] {
        step(format_args!("measuring deliveries end to end, {connections} connections"));
        peak = peak.max(deliver(stage, &scene, &sink, connections, options, figures).await?);
    }
    figures.add_relative("end_to_end_vs_pgbench", peak, 0.35);
    if options.wants("latency") {
        latency(&scene, &sink, peak / 10.0, options, figures).await?;
    }
    if let Some(memory) = usage::peak_memory_mb(scene.gateway.process()) {
        figures.add("end_to_end_gateway_peak_mb", memory);
    }
    stage.strike("end_to_end", scene)
}

/// Sends for the given time, waits for the last receipt, and divides: postponed deliveries count too.
async fn deliver(
    stage: &Stage,
    scene: &Scene,
    sink: &Sink,
    connections: usize,
    options: &Options,
    figures: &mut Figures,
) -> Result<f64> {
    let request = stage::single(&scene.api, &stage::message());
    let warm = load::closed_loop(scene.api.address, request.clone(), connections, WARM_UP, UNLIMITED).await?;
    expect_all_accepted(warm, scene)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = Costs::take(stage, scene).await;
    let (rate, tally) = delivered(scene, sink, request, connections, options.time).await?;
    figures.add(format!("end_to_end_{connections}_connections_per_s"), rate);
    let spent = Costs::take(stage, scene).await.since(&before, tally.accepted);
    spent.report(&format!("end_to_end_{connections}"), figures);
    Ok(rate)
}

/// Returns the rate at which such requests are delivered, and the answers.
pub async fn delivered(
    scene: &Scene,
    sink: &Sink,
    requests: impl Into<Requests>,
    connections: usize,
    time: Duration,
) -> Result<(f64, Tally)> {
    drain(sink).await;
    let already = sink.received();
    let began = Instant::now();
    let tally = load::closed_loop(scene.api.address, requests, connections, time, UNLIMITED).await?;
    expect_all_accepted(tally, scene)?;
    let end = sink.await_received(already + tally.accepted).await.with_context(|| scene.gateway.log_tail())?;
    let rate = tally.accepted as f64 / (end - began).as_secs_f64();
    note(format_args!("{rate:.0}/s delivered, {:.0}/s accepted meanwhile", per_second(tally, time)));
    Ok((rate, tally))
}

/// Waits until nothing arrives for a while: the warm-up's last deliveries must not be counted.
async fn drain(sink: &Sink) {
    loop {
        let received = sink.received();
        tokio::time::sleep(Duration::from_millis(500)).await;
        if sink.received() == received {
            return;
        }
    }
}

/// CPU so far, and the time spent in plugins.
pub struct Costs {
    gateway: Option<Duration>,
    database: Option<Duration>,
    plugin: Option<(f64, f64)>,
}

impl Costs {
    pub async fn take(stage: &Stage, scene: &Scene) -> Self {
        Self {
            gateway: usage::cpu(scene.gateway.process()),
            database: stage.database_cpu(),
            plugin: plugin_time(scene).await,
        }
    }

    /// Returns the resources that this number of messages used since.
    pub fn since(&self, before: &Self, messages: u64) -> Spent {
        let plugin = self.plugin.zip(before.plugin).filter(|((_, count), (_, fewer))| count > fewer);
        Spent {
            messages,
            gateway: self.gateway.zip(before.gateway).map(|(now, then)| now.saturating_sub(then).as_secs_f64()),
            database: self.database.zip(before.database).map(|(now, then)| now.saturating_sub(then).as_secs_f64()),
            plugin: plugin.map(|((seconds, _), (earlier, _))| seconds - earlier),
        }
    }
}

/// The seconds of this number of messages; `None` if they are unknown.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    messages: u64,
    gateway: Option<f64>,
    database: Option<f64>,
    plugin: Option<f64>,
}

impl Spent {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        if self.messages == 0 {
            return other;
        }
        let sum = |one: Option<f64>, other: Option<f64>| one.zip(other).map(|(one, other)| one + other);
        Self {
            messages: self.messages + other.messages,
            gateway: sum(self.gateway, other.gateway),
            database: sum(self.database, other.database),
            plugin: sum(self.plugin, other.plugin),
        }
    }

    /// Reports the resources for each message, as figures whose names begin with `prefix`.
    pub fn report(&self, prefix: &str, figures: &mut Figures) {
        let shares = [
            ("gateway_cpu_us_per_message", self.gateway),
            ("postgres_cpu_us_per_message", self.database),
            ("plugin_us_per_delivery", self.plugin),
        ];
        for (name, seconds) in shares {
            if let Some(seconds) = seconds {
                figures.add(format!("{prefix}_{name}"), seconds * 1e6 / self.messages as f64);
            }
        }
        if let Some((plugin, gateway)) = self.plugin.zip(self.gateway) {
            figures.add(format!("{prefix}_plugin_share_of_gateway_cpu"), plugin / gateway);
        }
    }
}

/// Seconds spent in plugins and the number of calls, from `/metrics`.
async fn plugin_time(scene: &Scene) -> Option<(f64, f64)> {
    let mut client = Client::connect(scene.api.address).await.ok()?;
    let text = client.request("GET", "/metrics", &[], b"").await.ok()?.text();
    Some((metric(&text, "angarium_plugin_seconds_sum")?, metric(&text, "angarium_plugin_seconds_count")?))
}

/// A metric's value over all its labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
    let values: Vec<f64> = samples.filter_map(|rest| rest.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// From request to receipt at a modest rate, beside a bare request to a server that does nothing.
async fn latency(scene: &Scene, sink: &Sink, rate: f64, options: &Options, figures: &mut Figures) -> Result<()> {
    step(format_args!("measuring latency at {rate:.0} messages a second"));
    let bare = bare_round_trip(rate, options.time).await?;
    let gateway = delivery_latency(scene, sink, rate, options.time).await?;
    note(format_args!("p50 {:.2} ms, p99 {:.2} ms; bare p50 {:.2} ms", gateway.p50_ms, gateway.p99_ms, bare.p50_ms));
    figures.add("latency_rate_per_s", rate);
    figures.add("latency_bare_p50_ms", bare.p50_ms);
    figures.add("latency_p50_ms", gateway.p50_ms);
    figures.add("latency_p99_ms", gateway.p99_ms);
    figures.add_with_target("latency_p50_over_bare_ms", gateway.p50_ms - bare.p50_ms, Target::AtMost(3.0));
    Ok(())
}

/// Percentiles from request to receipt.
pub async fn delivery_latency(scene: &Scene, sink: &Sink, rate: f64, time: Duration) -> Result<Latency> {
    let stamp = sink.stamp();
    timed(scene, sink, rate, time, || stage::stamped(&scene.api, &stamp())).await
}

/// The same of other requests; each carries the sink's stamp, and each has to arrive.
pub async fn timed(
    scene: &Scene,
    sink: &Sink,
    rate: f64,
    time: Duration,
    make: impl Fn() -> Vec<u8>,
) -> Result<Latency> {
    drop(sink.take_latencies());
    let already = sink.received();
    let tally = load::open_loop(scene.api.address, rate, time, make, |_| ()).await?;
    expect_all_accepted(tally, scene)?;
    sink.await_received(already + tally.accepted).await.with_context(|| scene.gateway.log_tail())?;
    Latency::of(sink.take_latencies()).context("nothing was measured")
}

async fn bare_round_trip(rate: f64, time: Duration) -> Result<Latency> {
    let sink = Sink::start().await?;
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let shared = Arc::clone(&times);
    let keep = move |time| shared.lock().unwrap_or_else(PoisonError::into_inner).push(time);
    let make = || Client::prepare("POST", "/quick", sink.address(), &[], b"{}");
    load::open_loop(sink.address(), rate, time.min(Duration::from_secs(4)), make, keep).await?;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    Latency::of(times).context("nothing was measured")
}

/// One message a request, due much later, 64 connections.
pub async fn accept(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    step("measuring accepts, one message a request, 64 connections");
    let rate = accepted(stage, "accept", options, 64, 1).await?;
    figures.add("accept_per_s", rate);
    figures.add_relative("accept_vs_pgbench", rate, 1.0);
    Ok(())
}

/// A hundred messages a request, 16 connections.
pub async fn accept_batch(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    step("measuring accepts, 100 messages a request, 16 connections");
    let rate = accepted(stage, "accept_batch", options, 16, 100).await?;
    figures.add("accept_batch_per_s", rate);
    figures.add_relative("accept_batch_vs_pgbench", rate, 2.5);
    Ok(())
}

async fn accepted(stage: &Stage, name: &str, options: &Options, connections: usize, copies: usize) -> Result<f64> {
    let sink = Sink::start().await?;
    let scene = stage.scene(name, BOTH, &sink).await?;
    let message = stage::later_message();
    let request = match copies {
        1 => stage::single(&scene.api, &message),
        _ => stage::batch(&scene.api, &message, copies),
    };
    load::closed_loop(scene.api.address, request.clone(), connections, WARM_UP, UNLIMITED).await?;
    let began = Instant::now();
    let tally = load::closed_loop(scene.api.address, request, connections, options.time, UNLIMITED).await?;
    let rate = tally.accepted as f64 * copies as f64 / began.elapsed().as_secs_f64();
    expect_all_accepted(tally, &scene)?;
    note(format_args!("{rate:.0}/s"));
    stage.strike(name, scene)?;
    Ok(rate)
}

fn per_second(tally: Tally, time: Duration) -> f64 {
    tally.accepted as f64 / time.as_secs_f64()
}

/// A refused message would make the figures meaningless.
pub fn expect_all_accepted(tally: Tally, scene: &Scene) -> Result<()> {
    ensure!(
        tally.refused == 0 && tally.accepted > 0,
        "the gateway accepted {} requests and refused {}:\n{}",
        tally.accepted,
        tally.refused,
        scene.gateway.log_tail()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# TYPE a histogram\na_sum{p=\"x\"} 1.5\na_sum{p=\"y\"} 2\na_summary 9\na_sum 1\n";
        assert_eq!(metric(text, "a_sum"), Some(4.5));
        assert_eq!(metric(text, "b"), None);
    }
}
