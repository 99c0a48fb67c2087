//! The end-to-end cost of a tenant's rules and scripts, beside a tenant without any; and the effect of a change under
//! load on latency.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Options;
use super::figures::{Figures, Target};
use super::load::{Latency, Requests};
use super::sink::Sink;
use super::stage::{self, BOTH, Scene, Stage};
use super::throughput::{Costs, Spent, delivered, timed};
use crate::api::Api;
use crate::progress::{note, step};

const RULES: usize = 100;
const CONNECTIONS: usize = 256;
/// With and without are measured in turns, short ones, so that what changes on the machine changes for all. Each comes
/// after each other one as often: what one leaves to be written is not always the same one's to bear.
const TURNS: [[usize; 3]; 12] = {
    let [a, b, c, d, e, f] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];
    [a, b, c, d, e, f, f, e, d, c, b, a]
};
/// The part of the rate with rules at which latency is measured.
const LOAD: f64 = 0.5;
/// The field of the stamp.
const STAMP: &str = "stamp";
/// Latency is measured so often without changes and with them, the one first and then the other.
const PAIRS: usize = 7;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(250);

/// Different messages, as from a shop: no customer is in two of them.
const MESSAGES: usize = 5_000;
const COUNTRIES: [&str; 8] = ["SE", "NO", "DK", "FI", "DE", "FR", "GB", "US"];

/// An order of a script's, as an operator would have it for a few countries.
const ROUTE: &str = r#"
const HOME = #{
    SE: ["quick"], NO: ["quick"], DK: ["quick"], FI: ["quick"],
    DE: ["quick", "slow"], FR: ["slow", "quick"], US: ["slow", "quick"],
};
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
    api.post("/v1/scripts/home/activate", &json!({"version": 1})).await?;
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

/// Returns a message that rules have consequences for.
fn message(number: usize) -> Value {
    let mut message = stage::message();
    message["attributes"] = json!({"amount": 100 + number % 1_900, "currency": "SEK"});
    let (country, postal_code) = (COUNTRIES[number % COUNTRIES.len()], 11_000 + number % 900);
    let id = format!("customer-{}", 70_000 + number);
    message["contact"] =
        json!({"id": id, "segment": "vip", "country": country, "postal_code": postal_code.to_string()});
    message
}

/// The same messages for all tenants, in turns; the rate with rules and the script.
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
    let requests = kinds.map(|(_, api)| (0..MESSAGES).map(|it| stage::single(api, &message(it))).collect::<Requests>());
    let (mut rates, mut spent) = ([[0.0; 3]; TURNS.len()], [Spent::default(); 3]);
    for warm_up in &requests {
        delivered(scene, sink, warm_up.clone(), CONNECTIONS, options.time / 3).await?;
    }
    for (order, rates) in TURNS.into_iter().zip(&mut rates) {
        for nth in order {
            let before = Costs::take(stage, scene).await;
            let (rate, tally) = delivered(scene, sink, requests[nth].clone(), CONNECTIONS, options.time / 3).await?;
            rates[nth] = rate;
            spent[nth] = spent[nth].and(Costs::take(stage, scene).await.since(&before, tally.accepted));
        }
    }
    for ((kind, _), spent) in kinds.iter().zip(spent) {
        spent.report(&format!("ruled_{kind}"), figures);
    }
    // A pause of the machine affects only one turn.
    let usual = |figure: fn(&[f64; 3]) -> f64| median(rates.each_ref().map(figure));
    let with_script = usual(|it| it[2]);
    figures.add("ruled_without_per_s", usual(|it| it[0]));
    figures.add("ruled_with_rules_per_s", usual(|it| it[1]));
    figures.add("ruled_with_script_per_s", with_script);
    figures.add_with_target("ruled_rules_vs_without", usual(|it| it[1] / it[0]), Target::AtLeast(0.9));
    figures.add_with_target("ruled_script_vs_without", usual(|it| it[2] / it[0]), Target::AtLeast(0.9));
    Ok(with_script)
}

fn median<const N: usize>(mut values: [f64; N]) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(N - 1) / 2], values[N / 2])
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
    let numbers = AtomicUsize::new(0);
    let stamped = || {
        let mut message = message(numbers.fetch_add(1, Ordering::Relaxed));
        message["content"]["payload"] = STAMP.into();
        message.to_string().replace(&format!("\"{STAMP}\""), &stamp())
    };
    let make = || scripted.prepare("POST", "/v1/messages", stamped().as_bytes());
    timed(scene, sink, rate, Duration::from_secs(1), make).await?;
    let (mut still, mut changing, mut changes) = ([0.0; PAIRS], [0.0; PAIRS], 0);
    for (pair, (still, changing)) in still.iter_mut().zip(&mut changing).enumerate() {
        for changes_now in [pair % 2 == 1, pair % 2 == 0] {
            let measured = timed(scene, sink, rate, options.time / 2, make);
            if changes_now {
                *changing = amid_changes(scripted, &mut changes, measured).await?.p99_ms;
            } else {
                *still = measured.await?.p99_ms;
            }
        }
        note(format_args!("p99 {still:.2} ms, {changing:.2} ms with changes"));
    }
    let (still, changing) = (median(still), median(changing));
    figures.add("ruled_load_per_s", rate);
    figures.add("ruled_p99_ms", still);
    figures.add("ruled_reloads", f64::from(changes));
    figures.add("ruled_reloads_p99_ms", changing);
    figures.add_with_target("ruled_reloads_p99_vs_still", changing / still, Target::AtMost(2.0));
    Ok(())
}

/// Measures while a rule or a script changes each [`PAUSE`].
async fn amid_changes(
    scripted: &Api,
    changes: &mut u32,
    measured: impl Future<Output = Result<Latency>>,
) -> Result<Latency> {
    let changing = async {
        loop {
            change(scripted, *changes).await?;
            *changes += 1;
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        measured = measured => measured,
        failed = changing => failed,
    }
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
    api.post("/v1/scripts/home/activate", &json!({"version": stored["version"]})).await?;
    Ok(())
}
