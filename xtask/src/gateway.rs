//! The gateway's process, started as an operator would: a configuration file, migrations, the command line.

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::api::Api;
use crate::http::Client;
use crate::lifeline::{Lifeline, Stop};

/// The settings of a started gateway.
#[derive(Clone, Debug)]
pub struct Settings {
    pub binary: PathBuf,
    /// The folder of its configuration, key and log.
    pub folder: PathBuf,
    pub database: String,
    /// The folder of provider components.
    pub providers: PathBuf,
    /// The folder of compiled components: private to the gateways with the same key.
    pub cache: PathBuf,
    /// `api`, `dispatch` or both.
    pub roles: &'static [&'static str],
    /// Names its files, and the node.
    pub name: String,
    pub listen: SocketAddr,
    /// The filter of its log: the bench wants less.
    pub log_filter: &'static str,
    /// Further tables of the configuration, as TOML.
    pub extra: String,
    /// Variables of its environment, for tests that break it.
    pub environment: Vec<(&'static str, String)>,
}

/// A running gateway. Dropping it lets it drain and stops it.
#[derive(Debug)]
pub struct Gateway {
    process: Lifeline,
    settings: Settings,
}

/// Returns a free port on loopback: 8080, which is easy to remember, if it is free.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:8080").or_else(|_| TcpListener::bind("127.0.0.1:0"));
    Ok(listener.context("no free port on 127.0.0.1")?.local_addr()?)
}

impl Settings {
    /// The tables of the database.
    pub fn migrate(&self) -> Result<()> {
        self.command_line(&["migrate"]).map(drop)
    }

    /// Makes a tenant, and a key of it with those scopes.
    pub fn create_key(&self, tenant: &str, scopes: &str) -> Result<String> {
        self.command_line(&["tenant", "create", tenant, "--json"])?;
        self.further_key(tenant, scopes)
    }

    /// Makes one more key of a tenant that exists.
    pub fn further_key(&self, tenant: &str, scopes: &str) -> Result<String> {
        let answer = self.command_line(&["key", "create", "--tenant", tenant, "--scopes", scopes, "--json"])?;
        let answer: Value = serde_json::from_str(&answer).context("`angarium key create --json` printed no JSON")?;
        let key = answer["key"].as_str().context("`angarium key create --json` printed no key")?;
        Ok(key.to_owned())
    }

    /// Runs `angarium` with those arguments and returns its output.
    pub fn command_line(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(&self.write_config()?)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("could not run {}", self.binary.display()))?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let command = arguments.join(" ");
        ensure!(output.status.success(), "`angarium {command}` failed ({}):\n{stderr}{stdout}", output.status);
        Ok(stdout.into_owned())
    }

    /// The gateway with this configuration and no other: the environment would win over the file.
    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name == "DATABASE_URL" || name.to_string_lossy().starts_with("ANGARIUM_") {
                command.env_remove(name);
            }
        }
        command.env("ANGARIUM_CONFIG", config);
        command
    }

    fn write_config(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).with_context(|| format!("could not make {}", self.folder.display()))?;
        let key = self.folder.join("secrets.key");
        if !key.exists() {
            write_key(&key)?;
        }
        let path = self.folder.join(format!("{}.toml", self.name));
        fs::write(&path, self.config(&key)).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    fn config(&self, key: &Path) -> String {
        let text = |value: &dyn ToString| Value::String(value.to_string()).to_string();
        let roles: Vec<_> = self.roles.iter().map(text_of).collect();
        format!(
            "# Written anew at every start.\n\
             roles = [{roles}]\n\
             [database]\nurl = {database}\n\
             [http]\nlisten = {listen}\npublic_url = {public_url}\n\
             [secrets]\nkey_file = {key}\n\
             [providers]\nfolder = {providers}\ncache_folder = {cache}\ngrant = \"declared\"\n\
             [egress]\nallow = [\"127.0.0.0/8\"]\n\
             [log]\nformat = \"json\"\nfilter = {filter}\n\
             [node]\nname = {name}\n\
             {extra}",
            roles = roles.join(", "),
            public_url = text(&format_args!("http://{}", self.listen)),
            database = text(&self.database),
            listen = text(&self.listen),
            key = text(&key.display()),
            providers = text(&self.providers.display()),
            cache = text(&self.cache.display()),
            filter = text(&self.log_filter),
            name = text(&self.name),
            extra = self.extra,
        )
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

fn text_of(value: &&str) -> String {
    Value::String((*value).to_owned()).to_string()
}

/// Writes a key-encryption key: 32 random bytes as base64, readable by its owner alone.
///
/// # Errors
/// When the file exists already, or cannot be written.
pub fn write_key(path: &Path) -> Result<()> {
    let mut key = [0_u8; 32];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut key)).context("no random bytes")?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("could not write {}", path.display()))?;
    Ok(std::io::Write::write_all(&mut file, STANDARD.encode(key).as_bytes())?)
}

impl Gateway {
    /// Starts `angarium serve` and waits until `/readyz` says so.
    pub async fn start(settings: Settings) -> Result<Self> {
        let mut gateway = Self::spawn(settings)?;
        gateway.await_ready().await?;
        Ok(gateway)
    }

    /// Starts `angarium serve` and doesn't wait.
    pub fn spawn(settings: Settings) -> Result<Self> {
        let config = settings.write_config()?;
        let log = File::create(settings.log()).context("could not write the gateway's log")?;
        let mut command = settings.command(&config);
        command
            .arg("serve")
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Lifeline::spawn(&mut command, Stop::Term)?;
        Ok(Self { process, settings })
    }

    async fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.is_ready().await {
            if let Some(status) = self.process.ended()? {
                bail!("the gateway ended at its start ({status}):\n{}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "the gateway isn't ready after 90 s:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut client) = Client::connect(self.settings.listen).await else { return false };
        client.request("GET", "/readyz", &[], b"").await.is_ok_and(|answer| answer.status == 200)
    }

    /// Its API, with that key.
    pub fn api(&self, key: &str) -> Api {
        Api::new(self.settings.listen, key)
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.settings.listen
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.settings.log()
    }

    /// How it ended, if it has by itself.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.process.ended()
    }

    /// Lets it drain and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.settings.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        let tail: Vec<_> = lines.into_iter().rev().collect();
        format!("{}\n({})", tail.join("\n"), self.settings.log().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_quoted() {
        let settings = Settings {
            binary: "angarium".into(),
            folder: "/a \"b\"".into(),
            database: "postgres:///x?host=/s&user=postgres".into(),
            providers: "/p".into(),
            cache: "/a \"b\"/components".into(),
            roles: &["api", "dispatch"],
            name: "demo".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            log_filter: "info",
            extra: String::new(),
            environment: vec![],
        };
        let config = settings.config(Path::new("/k"));
        assert!(config.contains("roles = [\"api\", \"dispatch\"]\n"));
        assert!(config.contains("cache_folder = \"/a \\\"b\\\"/components\"\n"));
        assert!(config.contains("listen = \"127.0.0.1:8080\"\n"));
    }
}
