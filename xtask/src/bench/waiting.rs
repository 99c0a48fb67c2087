//! Ten thousand deliveries in flight to a provider that takes ten seconds, and the effect on others.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::figures::{Figures, Target};
use super::sink::{HOLD, Sink};
use super::stage::{self, BOTH, Scene, Stage};
use super::throughput::{delivery_latency, expect_all_accepted};
use super::{Options, load, usage};
use crate::progress::{note, step};

const IN_FLIGHT: u64 = 10_000;
const BATCH: u64 = 500;
/// Messages a second to the other provider.
const RATE: f64 = 200.0;

pub async fn measure(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    step("measuring another provider's latency, unloaded");
    let sink = Sink::start().await?;
    let scene = stage.scene("slow_provider", BOTH, &sink).await?;
    let time = options.time.min(HOLD / 2);
    delivery_latency(&scene, &sink, RATE, Duration::from_secs(1)).await?;
    let unloaded = delivery_latency(&scene, &sink, RATE, time).await?;

    step(format_args!("the same with {IN_FLIGHT} deliveries in flight to a provider that takes {HOLD:?}"));
    let in_flight = occupy(&scene, &sink).await?;
    let loaded = delivery_latency(&scene, &sink, RATE, time).await?;
    note(format_args!("p99 {:.2} ms unloaded, {:.2} ms loaded", unloaded.p99_ms, loaded.p99_ms));

    figures.add("slow_provider_in_flight", in_flight as f64);
    figures.add("slow_provider_other_p99_unloaded_ms", unloaded.p99_ms);
    figures.add("slow_provider_other_p99_loaded_ms", loaded.p99_ms);
    let ratio = loaded.p99_ms / unloaded.p99_ms;
    figures.add_with_target("slow_provider_other_p99_vs_unloaded", ratio, Target::AtMost(2.0));
    if let Some(memory) = usage::peak_memory_mb(scene.gateway.process()) {
        figures.add_with_target("slow_provider_peak_mb", memory, Target::AtMost(300.0));
    }
    stage.strike("slow_provider", scene)
}

/// Sends to the slow provider and waits until all are there, or until the first ones are half way.
async fn occupy(scene: &Scene, sink: &Sink) -> Result<u64> {
    let mut message = stage::message();
    message["connection"] = "slow".into();
    let request = stage::batch(&scene.api, &message, BATCH as usize);
    let tally = load::closed_loop(scene.api.address, request, 4, HOLD / 2, IN_FLIGHT / BATCH).await?;
    expect_all_accepted(tally, scene)?;
    let began = Instant::now();
    while sink.received_slow() < IN_FLIGHT && began.elapsed() < HOLD / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let in_flight = sink.received_slow();
    note(format_args!("{in_flight} in flight"));
    ensure!(in_flight > 0, "nothing arrived at the slow provider:\n{}", scene.gateway.log_tail());
    Ok(in_flight)
}
