//! One, two and four gateways on one database: their combined rate, their fairness, and the time until a killed one's
//! deliveries continue.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::backlog;
use super::fairness;
use super::figures::Figures;
use super::sink::Sink;
use super::stage::{API, BOTH, Scene, Stage};
use crate::gateway::Gateway;
use crate::progress::{note, step};

const PROCESSES: [usize; 3] = [1, 2, 4];
const BACKLOG: u64 = 150_000;
/// The first receipts of processes that have just started are not their rate.
const SKIPPED: u64 = 5_000;
/// Receipts over which the rate is taken.
const COUNTED: u64 = 40_000;
/// A node is killed when no more than that is left, so that the others are soon done with their own.
const LEFT: u64 = 5_000;
/// Longer than any lease.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn measure(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let mut alone = None;
    for count in PROCESSES {
        let rate = with(stage, count, figures).await?;
        let ratio = rate / *alone.get_or_insert(rate);
        figures.add(format!("scale_{count}_dispatch_vs_1"), ratio);
    }
    Ok(())
}

/// Measures the rate of a number of processes.
async fn with(stage: &Stage, count: usize, figures: &mut Figures) -> Result<f64> {
    step(format_args!("measuring {count} dispatching gateways on one database"));
    let sink = Sink::start().await?;
    let scene = stage.scene("scale", API, &sink).await?;
    let few = scene.tenant("few", &sink).await?;
    let nodes = join(&scene, count).await?;
    let unloaded = fairness::times(&scene.gateway.api(&few), &sink).await?;
    stop(nodes)?;

    let before = sink.received();
    backlog::fill(&scene, BACKLOG).await?;
    let mut nodes = join(&scene, count).await?;
    let began = sink.await_received(before + SKIPPED).await?;
    let ended = sink.await_received(before + SKIPPED + COUNTED).await?;
    let rate = COUNTED as f64 / (ended - began).as_secs_f64();
    figures.add(format!("scale_{count}_dispatch_per_s"), rate);
    let loaded = fairness::times(&scene.gateway.api(&few), &sink).await?;
    figures.add(format!("scale_{count}_fairness_vs_unloaded"), loaded.p50_ms / unloaded.p50_ms);
    note(format_args!("{rate:.0}/s; ten messages behind the backlog {:.2} ms", loaded.p50_ms));

    if count > 1 {
        sink.await_received(before + BACKLOG - LEFT).await?;
        let mut killed = nodes.pop().context("a node to kill")?;
        killed.kill()?;
        let seconds = until_all_is_settled(stage).await?.as_secs_f64();
        note(format_args!("{seconds:.1} s after a kill everything is settled"));
        figures.add(format!("scale_{count}_takeover_s"), seconds);
    }
    stop(nodes)?;
    stage.strike("scale", scene)?;
    Ok(rate)
}

async fn join(scene: &Scene, count: usize) -> Result<Vec<Gateway>> {
    let mut nodes = Vec::with_capacity(count);
    for _ in 0..count {
        nodes.push(scene.join_ready(BOTH).await?);
    }
    Ok(nodes)
}

fn stop(nodes: Vec<Gateway>) -> Result<()> {
    nodes.into_iter().try_for_each(Gateway::stop)
}

/// Waits until the killed node's deliveries are settled: nothing waits and no lease is held.
async fn until_all_is_settled(stage: &Stage) -> Result<Duration> {
    let began = Instant::now();
    let open = "select (select count(*) from queue) + (select count(*) from lease)";
    while stage.cluster.execute("bench_scale", open)? != "0" {
        ensure!(began.elapsed() < PATIENCE, "something is still open {PATIENCE:?} after a kill");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(began.elapsed())
}
