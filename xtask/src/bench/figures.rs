//! The measured figures, beside their targets.

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use crate::progress::note;

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug)]
struct Figure {
    name: String,
    value: f64,
    target: Option<Target>,
}

/// All figures, in the order of measuring.
#[derive(Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    /// Rates that are stated relative to the reference, once that is known.
    relative: Vec<(&'static str, f64, f64)>,
}

impl Figures {
    /// A figure without a target; its name ends with its unit.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.all.push(Figure { name: name.into(), value, target: None });
    }

    /// A figure that should reach something.
    pub fn add_with_target(&mut self, name: impl Into<String>, value: f64, target: Target) {
        self.all.push(Figure { name: name.into(), value, target: Some(target) });
    }

    /// Adds a rate a second whose relation to pgbench counts.
    pub fn add_relative(&mut self, name: &'static str, rate: f64, at_least: f64) {
        self.relative.push((name, rate, at_least));
    }

    /// States the relative figures: the reference is the mean of a run before and a run after.
    pub fn relate_to(&mut self, before: f64, after: f64) {
        let reference = f64::midpoint(before, after);
        if before.min(after) < 0.8 * before.max(after) {
            note("the reference changed by more than a fifth during the run: something else uses this machine");
        }
        self.add("pgbench_8_before_per_s", before);
        self.add("pgbench_8_after_per_s", after);
        for (name, rate, at_least) in std::mem::take(&mut self.relative) {
            self.add_with_target(name, rate / reference, Target::AtLeast(at_least));
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["figure", "measured", "target", ""]);
        for figure in &self.all {
            table.add_row([figure.name.clone(), rounded(figure.value).to_string(), figure.wanted(), figure.verdict()]);
        }
        table.to_string()
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let all: Map<_, _> =
            self.all.iter().map(|figure| (figure.name.clone(), json!(rounded(figure.value)))).collect();
        Value::Object(all)
    }
}

impl Figure {
    fn wanted(&self) -> String {
        match self.target {
            Some(Target::AtLeast(least)) => format!("≥ {least}"),
            Some(Target::AtMost(most)) => format!("≤ {most}"),
            None => String::new(),
        }
    }

    fn verdict(&self) -> String {
        let met = match self.target {
            Some(Target::AtLeast(least)) => self.value >= least,
            Some(Target::AtMost(most)) => self.value <= most,
            None => return String::new(),
        };
        if met { "met" } else { "NOT met" }.to_owned()
    }
}

/// Three digits after the point for small numbers, none for large ones.
fn rounded(value: f64) -> f64 {
    if value.abs() >= 1000.0 { value.round() } else { (value * 1000.0).round() / 1000.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_stated_relative_to_the_reference() {
        let mut figures = Figures::default();
        figures.add_relative("accept_vs_pgbench", 12_000.0, 1.0);
        figures.relate_to(10_000.0, 14_000.0);
        assert_eq!(figures.json()["accept_vs_pgbench"], json!(1.0));
        assert!(figures.table().contains("met"));
    }
}
