//! The dispatch rate with much waiting, beside the rate with little waiting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::figures::{Figures, Target};
use super::sink::Sink;
use super::stage::{self, API, DISPATCH, Scene, Stage};
use super::throughput::expect_all_accepted;
use super::{Options, load, usage};
use crate::progress::{note, step};

const LITTLE: u64 = 10_000;
const MUCH: u64 = 1_000_000;
/// Messages a request while filling.
const BATCH: u64 = 1000;
/// The first receipts of a process that has just started are not its rate.
const SKIPPED: u64 = 1000;

pub async fn measure(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    let little = drain_rate(stage, "backlog_little", LITTLE, options.time, figures).await?;
    let much = drain_rate(stage, "backlog_much", MUCH, options.time, figures).await?;
    figures.add_with_target("backlog_much_vs_little", much / little, Target::AtLeast(0.9));
    Ok(())
}

async fn drain_rate(stage: &Stage, name: &str, waiting: u64, time: Duration, figures: &mut Figures) -> Result<f64> {
    step(format_args!("measuring the dispatch rate with {waiting} waiting"));
    let sink = Sink::start().await?;
    let scene = stage.scene(name, API, &sink).await?;
    fill(&scene, waiting).await?;
    let dispatcher = scene.join(DISPATCH)?;
    let rate = rate_of_receipts(&sink, waiting, time).await.with_context(|| dispatcher.log_tail())?;
    note(format_args!("{rate:.0}/s"));
    figures.add(format!("{name}_per_s"), rate);
    if let Some(memory) = usage::peak_memory_mb(dispatcher.process()) {
        figures.add_with_target(format!("{name}_peak_mb"), memory, Target::AtMost(300.0));
    }
    dispatcher.stop()?;
    stage.strike(name, scene)?;
    Ok(rate)
}

/// Accepts messages that are due at once, on a gateway that doesn't dispatch.
pub async fn fill(scene: &Scene, waiting: u64) -> Result<()> {
    let began = Instant::now();
    let request = stage::batch(&scene.api, &stage::message(), BATCH as usize);
    let patience = Duration::from_secs(150);
    let tally = load::closed_loop(scene.api.address, request, 4, patience, waiting / BATCH).await?;
    expect_all_accepted(tally, scene)?;
    let accepted = tally.accepted * BATCH;
    ensure!(accepted >= waiting, "only {accepted} of {waiting} messages could be accepted in {patience:?}");
    note(format_args!("{accepted} accepted in {:.0} s", began.elapsed().as_secs_f64()));
    Ok(())
}

async fn rate_of_receipts(sink: &Sink, waiting: u64, time: Duration) -> Result<f64> {
    let began = sink.await_received(SKIPPED).await?;
    let first = sink.received();
    let last = waiting - waiting / 20;
    while began.elapsed() < time && sink.received() < last {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let elapsed = began.elapsed().as_secs_f64();
    Ok((sink.received() - first) as f64 / elapsed)
}
