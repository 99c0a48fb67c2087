//! A child process that can't outlive its parent.
//!
//! A small shell holds the reading end of a pipe. When the writing end closes, because the parent let go of it or
//! because the parent was killed, the shell sends the child its stop signal. That works on every Unix, for any
//! thread that starts a child, and needs no unsafe code; Linux's "parent death signal" offers none of the three.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a child is asked to stop.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// The polite one, which most servers drain at.
    Term,
    /// PostgreSQL's fast shutdown.
    Interrupt,
}

impl Stop {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

/// A running child and the pipe that its life hangs on.
#[derive(Debug)]
pub struct Lifeline {
    child: Child,
    watcher: Child,
    patience: Duration,
}

/// `over` says that the child has ended. Else it is signalled, and killed when it is still there 15 seconds later.
const WATCH: &str = r#"
read -r word
[ "$word" = over ] && exit
kill -s "$1" "$2" 2>/dev/null || exit
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    for part in 1 2 3 4 5; do sleep 0.2; kill -s 0 "$2" 2>/dev/null || exit; done
done
kill -s KILL "$2"
"#;

impl Lifeline {
    /// Starts `command` in a process group of its own, so that a Ctrl-C in the terminal reaches the parent alone.
    pub fn spawn(command: &mut Command, stop: Stop) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child =
            command.process_group(0).stdin(Stdio::null()).spawn().with_context(|| format!("could not start {name}"))?;
        let watcher = Command::new("sh")
            .args(["-c", WATCH, "lifeline", stop.name(), &child.id().to_string()])
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watcher {
            Ok(watcher) => Ok(Self { child, watcher, patience: Duration::from_secs(15) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error).context("could not start `sh`, which watches over child processes")
            }
        }
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the child ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks the child to stop and waits for it; kills it when it takes longer than 15 seconds.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            drop(self.watcher.stdin.take());
            self.await_end()?;
        }
        self.release();
        Ok(self.child.wait()?)
    }

    /// Kills the child at once, as a crash would.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        let status = self.child.wait()?;
        self.release();
        Ok(status)
    }

    fn await_end(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends the watcher: the child has ended, and its number may soon be another's.
    fn release(&mut self) {
        if let Some(mut pipe) = self.watcher.stdin.take() {
            let _ = pipe.write_all(b"over\n");
        }
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Whether a process of that id is alive and may be signalled by us.
pub fn alive(pid: u32) -> bool {
    signal(pid, "0")
}

/// Sends a signal by its name (`TERM`, `INT`, `KILL`; `0` only asks); false when there is no such process.
pub fn signal(pid: u32, name: &str) -> bool {
    Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1" 2>/dev/null"#, name, &pid.to_string()])
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_child_is_gone() {
        let mut child = Lifeline::spawn(Command::new("sleep").arg("60"), Stop::Term).unwrap();
        let pid = child.id();
        assert!(alive(pid));
        child.stop().unwrap();
        assert!(!alive(pid));
    }

    #[test]
    fn a_child_ends_when_the_pipe_closes() {
        let mut child = Lifeline::spawn(Command::new("sleep").arg("60"), Stop::Interrupt).unwrap();
        drop(child.watcher.stdin.take());
        assert!(!child.child.wait().unwrap().success());
    }

    #[test]
    fn a_child_that_ended_by_itself_is_reported() {
        let mut child = Lifeline::spawn(&mut Command::new("true"), Stop::Term).unwrap();
        let status = loop {
            if let Some(status) = child.ended().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success());
        assert!(child.stop().unwrap().success());
    }
}
