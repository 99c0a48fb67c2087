//! The resources that processes used: CPU and memory, from /proc (Linux; elsewhere the figures are left out).

use std::fs;
use std::time::Duration;

/// Returns the CPU time of a process so far, with that of its ended children.
pub fn cpu(process: u32) -> Option<Duration> {
    parse_cpu(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?).map(|(_, time)| time)
}

/// CPU time of a process and of its living children: a PostgreSQL server is many processes.
pub fn cpu_of_family(process: u32) -> Option<Duration> {
    let mut total = cpu(process)?;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((parent, time)) = parse_cpu(&stat)
            && parent == process
        {
            total += time;
        }
    }
    Some(total)
}

/// The most memory that a process has had resident, in MB.
pub fn peak_memory_mb(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

/// Returns the parent and the CPU time in a line of proc(5)'s `stat`, whose ticks are hundredths of a second.
fn parse_cpu(stat: &str) -> Option<(u32, Duration)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, Duration::from_millis(ticks * 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_even_with_odd_names() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 0 0 100 20 3 1 20 0 1 0 50 1 1";
        assert_eq!(parse_cpu(stat), Some((3, Duration::from_millis(1240))));
    }
}
