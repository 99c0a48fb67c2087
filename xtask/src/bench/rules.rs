//! The cost of declarative rules for a message: decisions a second on one core, and their decline with the number of
//! rules; and the same of a script.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Options;
use super::figures::{Figures, Target};
use crate::progress::step;
use crate::project;

/// The factor by which ten thousand rules may cost more than ten.
const MOST_TIMES: f64 = 4.0;

/// Runs the host's example, which decides by the gateway's own code and needs no database.
pub fn measure(options: &Options, figures: &mut Figures) -> Result<()> {
    step("building and asking the rules");
    let mut command = Command::new(project::build_example("rules_rate", options.profile())?);
    command.arg(options.time.as_secs_f64().to_string());
    let line = project::line(&command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("could not run `{line}`"))?;
    ensure!(output.status.success(), "`{line}` failed ({})", output.status);
    add_all(&String::from_utf8_lossy(&output.stdout), figures)
}

/// A line of JSON for each number of rules, the fewest first.
fn add_all(lines: &str, figures: &mut Figures) -> Result<()> {
    let mut fewest = None;
    for line in lines.lines() {
        let measured: Value = serde_json::from_str(line).with_context(|| format!("not a measurement: {line}"))?;
        let number = |name: &str| measured[name].as_f64().with_context(|| format!("no `{name}` in {line}"));
        if let Some(name) = measured["script"].as_str() {
            figures.add(format!("script_{name}_decisions_per_s"), number("decisions_per_s")?);
            continue;
        }
        let (rules, rate) = (number("rules")?, number("decisions_per_s")?);
        figures.add(format!("rules_{rules}_decisions_per_s"), rate);
        for name in ["looked_at_a_message", "held_a_message", "load_ms"] {
            figures.add(format!("rules_{rules}_{name}"), number(name)?);
        }
        let times = *fewest.get_or_insert(rate) / rate;
        if rules >= 10_000.0 {
            figures.add_with_target(format!("rules_{rules}_cost_in_times"), times, Target::AtMost(MOST_TIMES));
        } else if rules > 10.0 {
            figures.add(format!("rules_{rules}_cost_in_times"), times);
        }
    }
    ensure!(fewest.is_some(), "nothing was measured");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rules_are_stated_by_what_ten_cost() {
        let lines = r#"{"rules": 10, "decisions_per_s": 500000.0, "looked_at_a_message": 3, "held_a_message": 0.5, "load_ms": 0.1}
{"rules": 10000, "decisions_per_s": 200000.0, "looked_at_a_message": 9, "held_a_message": 3.5, "load_ms": 80.0}
{"script": "ab_split", "decisions_per_s": 30000.0}"#;
        let mut figures = Figures::default();
        add_all(lines, &mut figures).unwrap();
        assert_eq!(figures.json()["rules_10000_cost_in_times"], 2.5);
        assert_eq!(figures.json()["script_ab_split_decisions_per_s"], 30000.0);
        assert!(add_all("", &mut figures).is_err() && add_all("{}", &mut figures).is_err());
    }
}
