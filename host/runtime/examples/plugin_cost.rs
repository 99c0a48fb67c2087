//! Measures the cost of a component for a delivery: `cargo run --release --example plugin_cost -- FILE [CONFIG]`.

use std::{env, error::Error, fs, time::Instant};

use angarium_domain::{
    provider::{CallContext, Item, Step},
    transmission::{Mailbox, Reply},
};
use angarium_runtime::{Runtime, RuntimeSettings};

const ROUNDS: u32 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let file = arguments.next().ok_or("give the component's file")?;
    let config = arguments.next().unwrap_or_else(|| r#"{"url":"http://127.0.0.1/"}"#.to_owned());

    let began = Instant::now();
    let component = Runtime::new(RuntimeSettings::default())?.admit(&fs::read(&file)?)?;
    println!("admitted in {:?}, {} bytes", began.elapsed(), component.size());

    let ctx = CallContext {
        now_ms: 1.7e12,
        attempt: 1,
        seed: [7; 32],
        secrets: vec!["signing_key".to_owned()],
        callback_url: None,
        redactor: Default::default(),
    };
    let reply = Reply::Http { status: 200, headers: Vec::new(), body: "{}".into(), cut: None };
    let items = [delivery(&component.descriptor().channels[0])];
    let (began, mut cpu, mut memory) = (Instant::now(), std::time::Duration::ZERO, 0);
    for _ in 0..ROUNDS {
        let prepared = component.prepare(&ctx, &config, &items);
        let Step::Send { state, .. } = prepared.result? else { return Err("nothing to send".into()) };
        let interpreted = component.interpret(&ctx, &config, &state, &reply);
        interpreted.result?;
        cpu += prepared.usage.cpu + interpreted.usage.cpu;
        memory = memory.max(prepared.usage.peak_memory);
    }
    println!("prepare + interpret: {:?}, {:?} of CPU, {memory} bytes", began.elapsed() / ROUNDS, cpu / ROUNDS);
    Ok(())
}

/// A delivery with 5 KB of text.
fn delivery(channel: &str) -> Item {
    Item {
        id: "dlv_1".to_owned(),
        key: "key-1".to_owned(),
        channel: channel.to_owned(),
        to: vec![Mailbox { value: "http://127.0.0.1/hook".to_owned(), name: None }],
        payload: Some(format!("{{\"text\":\"{}\"}}", "x".repeat(5 << 10))),
        ..Item::default()
    }
}
