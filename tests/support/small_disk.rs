//! A disk small enough to be filled: a tmpfs of the test's own.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use xtask::lifeline::{Lifeline, Stop};

use super::peer;

/// The disk. It goes with the process that holds it, and that goes with the test.
pub struct SmallDisk {
    folder: PathBuf,
    _holder: Lifeline,
    _mounted_on: tempfile::TempDir,
}

/// Mounts, says so, and waits to be told to stop.
const HOLD: &str = r#"
trap 'umount -l "$2"; exit' TERM
mount -t tmpfs -o "size=$1m,mode=0755" angarium "$2" || exit 1
: > "$2/mounted"
while :; do sleep 0.1; done
"#;

impl SmallDisk {
    /// Root mounts it; a plain user does so in a mount namespace of a process, and reaches it through that process.
    /// `None`, with a message, if the machine allows neither.
    pub fn new(mebibytes: u32) -> Option<Self> {
        let target = tempfile::Builder::new().prefix("ang").tempdir_in("/tmp").unwrap();
        let root = xtask::machine::user_id().unwrap() == 0;
        let mut command = if root { Command::new("sh") } else { Command::new("unshare") };
        if !root {
            command.args(["--user", "--map-root-user", "--mount", "sh"]);
        }
        command.args(["-c", HOLD, "hold", &mebibytes.to_string()]).arg(target.path());
        let said = target.path().with_extension("err");
        command.stderr(File::create(&said).unwrap());
        let Ok(mut holder) = Lifeline::spawn(&mut command, Stop::Term) else {
            peer::not_run("no small disk can be mounted: there is no `unshare`");
            return None;
        };
        let through = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let inside = target.path().strip_prefix("/").unwrap();
        let folder = if root { target.path().to_owned() } else { through.join(inside) };
        let mounted = await_file(&folder.join("mounted"), &mut holder);
        let why = fs::read_to_string(&said).unwrap_or_default();
        let _ = fs::remove_file(&said);
        if !mounted {
            peer::not_run(&format!("no small disk can be mounted: {}", why.trim()));
            return None;
        }
        Some(Self { folder, _holder: holder, _mounted_on: target })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        for block in [1 << 20, 4096] {
            while file.write_all(&vec![b'x'; block]).is_ok() {}
        }
    }

    /// Frees the space.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

fn await_file(file: &Path, holder: &mut Lifeline) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && holder.ended().unwrap().is_none() {
        if file.exists() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
