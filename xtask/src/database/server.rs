//! The private server's process: made, started, stopped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Options;
use super::binaries::Binaries;
use super::place::Place;
use crate::lifeline::{self, Lifeline, Stop};

/// A running private server. Dropping it stops it; the process comes first, so that the place is let go last.
#[derive(Debug)]
pub struct Server {
    process: Mutex<Lifeline>,
    binaries: Binaries,
    options: Options,
    socket: PathBuf,
    place: Place,
}

impl Server {
    pub fn start(binaries: &Binaries, options: &Options) -> Result<Self> {
        let place = Place::reserve(&options.folder, options.numbered)?;
        stop_leftover(&place.data)?;
        discard_unusable(&place, binaries, options)?;
        if !place.data.join("PG_VERSION").exists() {
            initialise(&place, binaries)?;
        }
        let socket = place.socket_folder()?;
        let process = Mutex::new(spawn(&place, binaries, options, &socket)?);
        let server = Self { process, binaries: binaries.clone(), options: options.clone(), socket, place };
        server.await_ready()?;
        Ok(server)
    }

    /// Stops it, as an operator would; its data stay.
    pub fn stop(&self) -> Result<()> {
        self.running().stop().map(drop)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.running().ended()?.is_some())
    }

    /// Starts it again if it has ended, whatever ended it, and waits until it is ready.
    pub fn start_again(&self) -> Result<()> {
        let mut process = self.running();
        if process.ended()?.is_some() {
            *process = spawn(&self.place, &self.binaries, &self.options, &self.socket)?;
        }
        drop(process);
        self.await_ready()
    }

    fn running(&self) -> MutexGuard<'_, Lifeline> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=postgres", self.socket.display())
    }

    pub fn process(&self) -> u32 {
        self.running().id()
    }

    pub fn folder(&self) -> &Path {
        &self.place.data
    }

    /// The server writes its state into `postmaster.pid`; recovery after a crash may take a while.
    fn await_ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        let file = self.place.data.join("postmaster.pid");
        loop {
            if let Some(status) = self.running().ended()? {
                bail!("PostgreSQL ended at its start ({status}):\n{}", self.log_tail());
            }
            let ready = fs::read_to_string(&file).is_ok_and(|text| is_ready(&text, self.process()));
            if ready {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "PostgreSQL isn't ready after two minutes:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_tail(&self) -> String {
        let log = self.place.beside(".log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(10).collect();
        let tail: Vec<_> = lines.into_iter().rev().collect();
        format!("{}\n({})", tail.join("\n"), log.display())
    }
}

/// Line 1 of `postmaster.pid` is the process, line 8 its state.
fn is_ready(postmaster: &str, process: u32) -> bool {
    let mut lines = postmaster.lines();
    let ours = lines.next().is_some_and(|line| line.trim() == process.to_string());
    ours && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// A killed run's server is about to end by its lifeline; one that does not is stopped.
fn stop_leftover(data: &Path) -> Result<()> {
    let file = data.join("postmaster.pid");
    for (patience, signal) in [(2, "INT"), (10, "QUIT"), (5, "KILL"), (5, "KILL")] {
        let Some(process) = leftover(&file) else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < deadline {
            if leftover(&file).is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        lifeline::signal(process, signal);
    }
    bail!("a PostgreSQL that an earlier run left in {} can't be stopped", data.display())
}

/// The process that holds the data folder; a number that another program has by now is none.
fn leftover(file: &Path) -> Option<u32> {
    let process: u32 = fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()?;
    let name = std::process::Command::new("ps").args(["-o", "comm=", "-p", &process.to_string()]).output();
    let postgres = match name {
        Ok(output) => String::from_utf8_lossy(&output.stdout).contains("postgres"),
        Err(_) => true,
    };
    (postgres && lifeline::alive(process)).then_some(process)
}

/// Data of another major version can't be used: a test's is thrown away, a demo's is left to its owner.
fn discard_unusable(place: &Place, binaries: &Binaries, options: &Options) -> Result<()> {
    let Ok(version) = fs::read_to_string(place.data.join("PG_VERSION")) else { return Ok(()) };
    if version.trim() == binaries.major.to_string() {
        return Ok(());
    }
    ensure!(
        !options.durable,
        "{} was made by PostgreSQL {}, and this machine has {}. Remove that folder to begin anew",
        place.data.display(),
        version.trim(),
        binaries.major
    );
    fs::remove_dir_all(&place.data).with_context(|| format!("could not remove {}", place.data.display()))
}

/// Made under another name first: a run that is killed meanwhile leaves no half-made cluster.
fn initialise(place: &Place, binaries: &Binaries) -> Result<()> {
    let new = place.beside(".new");
    for unfinished in [&new, &place.data] {
        if unfinished.exists() {
            fs::remove_dir_all(unfinished).with_context(|| format!("could not remove {}", unfinished.display()))?;
        }
    }
    place.account.private_folder(&new)?;
    let output = place
        .account
        .command(&binaries.initdb)
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"])
        .arg("--pgdata")
        .arg(&new)
        .output()
        .with_context(|| format!("could not run {}", binaries.initdb.display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "initdb could not make {}: {}", new.display(), error.trim());
    fs::rename(&new, &place.data).with_context(|| format!("could not rename {}", new.display()))
}

fn spawn(place: &Place, binaries: &Binaries, options: &Options, socket: &Path) -> Result<Lifeline> {
    let log = File::create(place.beside(".log")).context("could not write the database's log")?;
    let mut command = place.account.command(&binaries.postgres);
    command.arg("-D").arg(&place.data).arg("-k").arg(socket);
    for (name, value) in options.all_settings() {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.stdout(log.try_clone()?).stderr(Stdio::from(log));
    Lifeline::spawn(&mut command, Stop::Interrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_state_file_is_read() {
        let file = "4711\n/data\n1790000000\n5432\n/data\n\n  1234567    42\nready   \n";
        assert!(is_ready(file, 4711));
        assert!(!is_ready(file, 4712));
        assert!(!is_ready(&file.replace("ready", "starting"), 4711));
        assert!(!is_ready("4711\n/data\n", 4711));
    }
}
