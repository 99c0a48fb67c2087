//! The reference: `pgbench`, 8 clients, one prepared single-row insert a transaction, rows of about 400 bytes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::database;
use crate::progress::{note, step};

const TABLE: &str = "drop table if exists reference; create table reference (\
    id bigint generated always as identity primary key, tenant bigint not null, \
    created_at timestamptz not null default now(), payload text not null)";

/// Inserts a second.
pub fn pgbench(stage: &Stage, time: Duration) -> Result<f64> {
    step("measuring the reference: pgbench, single-row inserts, 8 clients");
    let program = database::pgbench()
        .context("`pgbench` is missing. Install it (Debian: postgresql, Fedora: postgresql-contrib) and try again")?;
    if !stage.cluster.has_database("reference")? {
        stage.cluster.create_database("reference", None)?;
    }
    stage.cluster.execute("reference", TABLE)?;
    let script = stage.folder.join("reference.sql");
    let payload = "x".repeat(350);
    std::fs::write(&script, format!("insert into reference (tenant, payload) values (:client_id, '{payload}');\n"))?;
    let output = Command::new(program)
        .args(["--no-vacuum", "--protocol=prepared", "--client=8", "--jobs=2"])
        .arg(format!("--time={}", time.as_secs().clamp(2, 10)))
        .arg("--file")
        .arg(&script)
        .arg(stage.cluster.url("reference"))
        .output()
        .context("could not run pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    let rate = transactions_a_second(&text).with_context(|| format!("pgbench printed no rate:\n{text}"))?;
    note(format_args!("{rate:.0}/s"));
    Ok(rate)
}

/// Reads `tps = 16301.123456 (without initial connection time)`.
fn transactions_a_second(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let text = "latency average = 0.49 ms\ntps = 16301.5 (without initial connection time)\n";
        assert_eq!(transactions_a_second(text), Some(16301.5));
        assert_eq!(transactions_a_second("nothing"), None);
    }
}
