//! What a tenant's rules and scripts cost end to end, beside a tenant without any; and what a change of them under load
//! does to latency.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Options;
use super::figures::{Figures, Target};
use super::sink::Sink;
use super::stage::{self, BOTH, Scene, Stage};
use super::throughput::{Costs, Spent, delivered, timed};
use crate::api::Api;
use crate::progress::{note, step};

const RULES: usize = 100;
const CONNECTIONS: usize = 256;
/// With and without are measured in turns, short ones, so that what changes on the machine changes for both.
const TURNS: usize = 9;
/// Of the rate with rules, while latency is measured.
const LOAD: f64 = 0.5;
/// Where the stamp goes.
const STAMP: &str = "stamp";
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(250);

/// An order of a script's, as an operator would have it for a few countries.
const ROUTE: &str = r#"
const HOME = #{SE: ["quick"], NO: ["quick"], US: ["slow", "quick"]};
fn route(message, candidates) {
    let home = global::HOME.get(message.country ?? "");
    if home == () { return; }
    let near = candidates.filter(|it| it.connection in home);
    if near.is_empty() { return; }
    #{candidates: near + candidates.filter(|it| !(it.connection in home)), reason: "at home"}
}
"#;

pub async fn measure(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<()> {
    step(format_args!("measuring deliveries with {RULES} rules, with a script beside them, and without"));
    let sink = Sink::start().await?;
    let scene = stage.scene("ruled", BOTH, &sink).await?;
    let ruled = scene.gateway.api(&scene.tenant("ruled", &sink).await?);
    write_rules(&ruled).await?;
    let scripted = scene.gateway.api(&scene.tenant("scripted", &sink).await?);
    write_rules(&scripted).await?;
    write_script(&scripted).await?;
    let rate = cost(stage, &scene, &sink, &ruled, &scripted, options, figures).await?;
    reloads(&scene, &sink, &scripted, rate * LOAD, options, figures).await?;
    stage.strike("ruled", scene)
}

async fn write_rules(api: &Api) -> Result<()> {
    for number in 0..RULES {
        api.post("/v1/rules", &json!({"uid": format!("rule-{number}"), "rule": rule(number, 0.5)})).await?;
    }
    Ok(())
}

async fn write_script(api: &Api) -> Result<()> {
    api.post("/v1/scripts/home/versions", &json!({"source": ROUTE})).await?;
    api.post("/v1/scripts/home/promote", &json!({"version": 1})).await?;
    Ok(())
}

/// A tenth of them hold of the message; the others are about other customers and places.
fn rule(number: usize, score: f64) -> Value {
    let when = match number % 10 {
        0 => json!({"amount": {"min": number}}),
        1..=4 => json!({"customer": {"id": format!("customer-{number}")}}),
        5..=7 => json!({"geography": {"country": "SE", "postal_prefix": format!("9{number:02}")}}),
        _ => json!({"all": [{"customer": {"segment": "gold"}}, {"amount": {"min": number, "currency": "SEK"}}]}),
    };
    let then = json!({"connections": [{"connection": "quick", "score": score}]});
    json!({"name": format!("Rule {number}"), "priority": number % 7, "when": when, "then": then})
}

/// A message of which rules have something to say.
fn message() -> Value {
    let mut message = stage::message();
    message["attributes"] = json!({"amount": 1299, "currency": "SEK"});
    message["contact"] = json!({"id": "customer-77777", "segment": "vip", "country": "SE", "postal_code": "11122"});
    message
}

/// The same message for all tenants, in turns; the rate with rules and the script.
async fn cost(
    stage: &Stage,
    scene: &Scene,
    sink: &Sink,
    ruled: &Api,
    scripted: &Api,
    options: &Options,
    figures: &mut Figures,
) -> Result<f64> {
    let kinds = [("without", &scene.api), ("rules", ruled), ("script", scripted)];
    let (mut rates, mut spent) = ([0.0; 3], [Spent::default(); 3]);
    // The first turn warms up. Each begins with another, so that what one leaves to be written is not always the same
    // one's to bear.
    for turn in 0..=TURNS {
        for place in 0..kinds.len() {
            let nth = (turn + place) % kinds.len();
            let (_, api) = kinds[nth];
            let request = stage::single(api, &message());
            let before = Costs::take(stage, scene).await;
            let (rate, tally) = delivered(scene, sink, request, CONNECTIONS, options.time / 3).await?;
            if turn > 0 {
                rates[nth] += rate / TURNS as f64;
                spent[nth] = spent[nth].and(Costs::take(stage, scene).await.since(&before, tally.accepted));
            }
        }
    }
    for ((kind, _), spent) in kinds.iter().zip(spent) {
        spent.report(&format!("ruled_{kind}"), figures);
    }
    let [without, with_rules, with_script] = rates;
    figures.add("ruled_without_per_s", without);
    figures.add("ruled_with_rules_per_s", with_rules);
    figures.add("ruled_with_script_per_s", with_script);
    figures.add_with_target("ruled_rules_vs_without", with_rules / without, Target::AtLeast(0.9));
    figures.add_with_target("ruled_script_vs_without", with_script / without, Target::AtLeast(0.9));
    Ok(with_script)
}

/// Latency under load, and the same while rules and scripts change; every message arrives.
async fn reloads(
    scene: &Scene,
    sink: &Sink,
    scripted: &Api,
    rate: f64,
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    step(format_args!("measuring latency at {rate:.0} messages a second, and with a change each {PAUSE:?}"));
    let stamp = sink.stamp();
    let mut message = message();
    message["content"]["payload"] = STAMP.into();
    let text = message.to_string();
    let stamped = || text.replace(&format!("\"{STAMP}\""), &stamp());
    let make = || scripted.prepare("POST", "/v1/messages", stamped().as_bytes());
    timed(scene, sink, rate, Duration::from_secs(1), make).await?;
    let still = timed(scene, sink, rate, options.time, make).await?;
    let mut changes = 0;
    let changing = async {
        loop {
            change(scripted, changes).await?;
            changes += 1;
            tokio::time::sleep(PAUSE).await;
        }
    };
    let measured = tokio::select! {
        measured = timed(scene, sink, rate, options.time, make) => measured?,
        failed = changing => return failed,
    };
    note(format_args!("p99 {:.2} ms, {:.2} ms with {changes} changes", still.p99_ms, measured.p99_ms));
    figures.add("ruled_load_per_s", rate);
    figures.add("ruled_p99_ms", still.p99_ms);
    figures.add("ruled_reloads", f64::from(changes));
    figures.add("ruled_reloads_p99_ms", measured.p99_ms);
    figures.add_with_target("ruled_reloads_p99_vs_still", measured.p99_ms / still.p99_ms, Target::AtMost(2.0));
    Ok(())
}

/// A rule and a script in turn.
async fn change(api: &Api, number: u32) -> Result<()> {
    if number.is_multiple_of(2) {
        let score = f64::from(number % 10) / 10.0;
        api.put("/v1/rules/rule-0", &json!({"rule": rule(0, score)})).await?;
        return Ok(());
    }
    let source = format!("{ROUTE}// Version {number}.");
    let stored = api.post("/v1/scripts/home/versions", &json!({"source": source})).await?;
    api.post("/v1/scripts/home/promote", &json!({"version": stored["version"]})).await?;
    Ok(())
}
