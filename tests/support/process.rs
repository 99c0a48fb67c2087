//! The system's data about a process.

/// The most memory that a process has had resident so far, in bytes.
pub fn peak_memory(process: u32) -> usize {
    status_bytes(process, "VmHWM:")
}

/// The memory that a process has resident now, in bytes.
pub fn resident_memory(process: u32) -> usize {
    status_bytes(process, "VmRSS:")
}

fn status_bytes(process: u32, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with(field)).expect("Linux says it");
    let kib: usize = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib << 10
}
