//! One tenant's ten messages, alone and behind another's backlog: how long until the last of them has arrived.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::backlog;
use super::figures::{Figures, Target};
use super::load::Latency;
use super::sink::Sink;
use super::stage::{self, API, BOTH, Scene, Stage};
use crate::api::Api;
use crate::gateway::Gateway;
use crate::http::Client;
use crate::progress::{note, step};

const BACKLOG: u64 = 200_000;
const FEW: usize = 10;
/// How often the ten are sent; the first time of a process is not like the others.
const TIMES: usize = 25;
const PAUSE: Duration = Duration::from_millis(100);

/// The ways of the ten: dispatched by the node that takes them in, or through the queue.
const WAYS: [&str; 2] = ["direct", "queued"];

pub async fn measure(stage: &Stage, figures: &mut Figures) -> Result<()> {
    step("measuring the time of one tenant's ten messages, unloaded");
    let sink = Sink::start().await?;
    let scene = stage.scene("fairness", API, &sink).await?;
    let few = scene.tenant("few", &sink).await?;
    let node = scene.join_ready(BOTH).await?;
    let mut unloaded = Vec::new();
    for door in doors(&scene, &node, &few) {
        unloaded.push(times(&door, &sink).await.with_context(|| node.log_tail())?);
    }
    node.stop()?;

    step(format_args!("the same with {BACKLOG} of another tenant waiting"));
    backlog::fill(&scene, BACKLOG).await?;
    let filled = sink.received();
    let node = scene.join_ready(BOTH).await?;
    sink.await_received(filled + 1000).await?;
    for ((way, door), alone) in WAYS.iter().zip(doors(&scene, &node, &few)).zip(unloaded) {
        let behind = times(&door, &sink).await.with_context(|| node.log_tail())?;
        note(format_args!("{way}: {:.2} ms unloaded, {:.2} ms behind the backlog", alone.p50_ms, behind.p50_ms));
        figures.add(format!("fairness_{way}_unloaded_ms"), alone.p50_ms);
        figures.add(format!("fairness_{way}_loaded_ms"), behind.p50_ms);
        let ratio = behind.p50_ms / alone.p50_ms;
        figures.add_with_target(format!("fairness_{way}_vs_unloaded"), ratio, Target::AtMost(2.0));
    }
    let left = (filled + BACKLOG + 2 * (FEW * TIMES) as u64).saturating_sub(sink.received());
    ensure!(left > 0, "the backlog was gone before the measurement was over");
    figures.add("fairness_backlog_left", left as f64);
    node.stop()?;
    stage.strike("fairness", scene)
}

/// The tenant's ways in, in the order of [`WAYS`].
fn doors(scene: &Scene, node: &Gateway, key: &str) -> [Api; 2] {
    [node.api(key), scene.gateway.api(key)]
}

/// Sends the ten this number of times; measures from the request until the last has arrived.
pub(super) async fn times(door: &Api, sink: &Sink) -> Result<Latency> {
    let mut client = Client::connect(door.address).await?;
    let stamp = sink.stamp();
    drop(sink.take_latencies());
    let mut all = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let status = client.send(&stage::stamped_batch(door, &stamp(), FEW)).await?;
        ensure!(status < 300, "the ten were answered {status}");
        all.push(last_of(sink).await?);
        tokio::time::sleep(PAUSE).await;
    }
    all.remove(0);
    Latency::of(all).context("nothing was measured")
}

/// The time of the last of the ten.
async fn last_of(sink: &Sink) -> Result<Duration> {
    let began = Instant::now();
    let mut arrived = Vec::with_capacity(FEW);
    while arrived.len() < FEW {
        ensure!(began.elapsed() < Duration::from_secs(60), "{} of {FEW} arrived within a minute", arrived.len());
        arrived.extend(sink.take_latencies());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    arrived.into_iter().max().context("none arrived")
}
