//! `angarium config check`: the effective configuration, or all of its faults.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    output::{Column, Output},
    serve::Settings,
};
use crate::node::config::Config;

#[derive(Debug, Args)]
pub struct Configuration {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the effective values, secrets redacted; or name each key that is wrong, and fail.
    Check(Settings),
}

const COLUMNS: [Column<'_>; 2] = [("key", "/key"), ("value", "/value")];

impl Configuration {
    pub fn run(self, output: &Output) -> Result<(), CliError> {
        let Command::Check(settings) = self.command;
        let config = settings.load()?;
        let effective = effective(&config)?;
        match output.json {
            true => output.one(&effective, &[]),
            false => output.rows(&rows(&effective), &COLUMNS),
        }
        Ok(())
    }
}

fn effective(config: &Config) -> Result<Value, CliError> {
    serde_json::to_value(config).map_err(|error| CliError::said(format!("the configuration can't be shown: {error}")))
}

/// One row a key, its name with dots.
fn rows(effective: &Value) -> Value {
    let sections = effective.as_object().into_iter().flatten();
    let rows = sections.flat_map(|(section, value)| match value {
        Value::Object(keys) => {
            keys.iter().map(|(key, value)| json!({"key": format!("{section}.{key}"), "value": value})).collect()
        }
        other => vec![json!({"key": section, "value": other})],
    });
    rows.collect()
}
