//! What the system says of a process.

/// The most memory that a process has had resident so far, in MiB.
pub fn peak_memory_mib(process: u32) -> u64 {
    status_kib(process, "VmHWM:") / 1024
}

fn status_kib(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with(field)).expect("Linux says it");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
