//! Third-party programs that the tests talk to. `cargo xtask test` installs them and passes their paths.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;
use xtask::lifeline::{Lifeline, Stop};

/// The Python that has `tests/peers/requirements.txt`; without it the test has nothing to ask.
pub fn python() -> Option<PathBuf> {
    installed("ANGARIUM_PEERS_PYTHON")
}

/// The folder with the `node_modules` of `tests/peers/package.json`.
pub fn node() -> Option<PathBuf> {
    installed("ANGARIUM_PEERS_NODE")
}

/// The folder of the programs `prometheus` and `promtool`.
pub fn prometheus() -> Option<PathBuf> {
    installed("ANGARIUM_PEERS_PROMETHEUS")
}

/// Fails where peers are a must, so that no run that should have asked them passes without.
fn installed(variable: &str) -> Option<PathBuf> {
    let place = std::env::var_os(variable).filter(|it| !it.is_empty());
    if place.is_none() {
        not_run(&format!("{variable} is not set; `cargo xtask test` installs the peers and sets it"));
    }
    place.map(PathBuf::from)
}

/// Reports that a test did not run, with the reason; fails if every test is required.
pub fn not_run(why: &str) {
    let says = |name: &str, value: &str| std::env::var(name).is_ok_and(|it| it == value);
    let required = says("CI", "true") || says("ANGARIUM_REQUIRE_PEERS", "1");
    assert!(!required, "this test must run: {why}");
    eprintln!("NOT RUN: {why}");
}

/// A file beside the tests.
pub fn script(name: &str) -> PathBuf {
    xtask::project::root().join("tests/peers").join(name)
}

/// Returns a free port of loopback.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port()
}

/// Starts a server, and waits until it accepts connections. It ends when the returned value is dropped.
pub async fn start(mut command: Command, port: u16, log: &Path) -> Lifeline {
    let file = File::create(log).expect("the log can be made");
    command.stdout(file.try_clone().expect("one file, two handles")).stderr(file);
    let mut process = Lifeline::spawn(&mut command, Stop::Term).expect("the peer can be started");
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        let ended = process.ended().expect("its state can be asked");
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(ended.is_none(), "{command:?} ended ({ended:?}):\n{}", log());
        assert!(Instant::now() < deadline, "{command:?} takes no connections after a minute:\n{}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    process
}
