//! The development database: `DATABASE_URL` if it is set, else a private PostgreSQL cluster.
//!
//! The private cluster is a real server, started from the binaries on this machine, in a data folder of the project, on
//! a Unix socket that only its user can reach, without TCP and never as root. It ends with this process, however this
//! process ends ([`Lifeline`]). A server that a killed run left behind is stopped at the next start.

mod binaries;
mod place;
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub use binaries::pgbench;

use binaries::Binaries;
use server::Server;

/// Installs PostgreSQL if there is neither `DATABASE_URL` nor a server's programs.
pub fn ensure_installed() -> Result<()> {
    let given = std::env::var("DATABASE_URL").is_ok_and(|url| !url.is_empty());
    if !given {
        Binaries::find_or_install()?;
    }
    Ok(())
}

/// The place of a private cluster, and its tuning.
#[derive(Clone, Debug)]
pub struct Options {
    folder: PathBuf,
    durable: bool,
    numbered: bool,
    settings: Vec<(&'static str, &'static str)>,
}

impl Options {
    /// For `cargo xtask demo`: kept between runs, and durable.
    pub fn demo(project: &Path) -> Self {
        Self { folder: project.join(".angarium/postgres"), durable: true, numbered: false, settings: vec![] }
    }

    /// For tests: fast, not durable; each process that runs at the same time gets a cluster of its own.
    pub fn tests(project: &Path) -> Self {
        Self { folder: project.join("target/tmp/postgres"), durable: false, numbered: true, settings: vec![] }
    }

    /// For `cargo xtask bench`: durable, with room enough that a checkpoint doesn't fall into a short measurement.
    pub fn bench(project: &Path) -> Self {
        let settings = vec![
            ("shared_buffers", "512MB"),
            ("max_wal_size", "8GB"),
            ("checkpoint_timeout", "15min"),
            ("wal_buffers", "16MB"),
        ];
        Self { folder: project.join("target/tmp/postgres-bench"), durable: true, numbered: false, settings }
    }

    /// For a test that breaks its server: durable, in a folder of its own that nothing else uses.
    pub fn alone(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), durable: true, numbered: false, settings: vec![] }
    }

    /// Sets or replaces a setting of the server.
    #[must_use]
    pub fn setting(mut self, name: &'static str, value: &'static str) -> Self {
        self.settings.push((name, value));
        self
    }

    /// Makes it durable: a test about crashes of the database needs that.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    fn all_settings(&self) -> Vec<(&'static str, &'static str)> {
        let durability = if self.durable { "on" } else { "off" };
        let mut all = vec![
            ("listen_addresses", ""),
            ("max_connections", "200"),
            ("shared_buffers", "128MB"),
            ("fsync", durability),
            ("full_page_writes", durability),
            ("synchronous_commit", durability),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("jit", "off"),
        ];
        all.extend(&self.settings);
        all
    }
}

/// A server on which databases may be made. Dropping it stops a private one.
#[derive(Debug)]
pub struct Cluster {
    access: Access,
    psql: PathBuf,
}

#[derive(Debug)]
enum Access {
    /// `DATABASE_URL`.
    Given(String),
    Private(Box<Server>),
}

impl Cluster {
    /// Finds or starts the database; installs PostgreSQL from the distribution if it is missing.
    ///
    /// Blocks: a first start takes a second or two, a later one a few tenths.
    pub fn start(options: Options) -> Result<Self> {
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Self::given(url),
            _ => Self::start_private(&options),
        }
    }

    /// Starts a private cluster even if `DATABASE_URL` is set: for measurements, whose settings must be known.
    pub fn start_private(options: &Options) -> Result<Self> {
        let binaries = Binaries::find_or_install()?;
        let server = Server::start(&binaries, options)?;
        Ok(Self { access: Access::Private(Box::new(server)), psql: binaries.psql })
    }

    fn given(url: String) -> Result<Self> {
        let psql = binaries::psql().context(
            "DATABASE_URL is set, but this machine has no `psql` to make databases with. \
             Install PostgreSQL's client (Debian: postgresql-client), or unset DATABASE_URL",
        )?;
        let cluster = Self { access: Access::Given(url), psql };
        cluster.execute("postgres", "select 1").context("the server of DATABASE_URL can't be used")?;
        Ok(cluster)
    }

    /// The address of a database, as libpq and sqlx understand it.
    pub fn url(&self, database: &str) -> String {
        match &self.access {
            Access::Given(url) => with_database(url, database),
            Access::Private(server) => server.url(database),
        }
    }

    /// The process id of a private server.
    pub fn process(&self) -> Option<u32> {
        match &self.access {
            Access::Given(_) => None,
            Access::Private(server) => Some(server.process()),
        }
    }

    /// Stops a private server; its data stay. A given one is another's to stop.
    pub fn stop(&self) -> Result<()> {
        match &self.access {
            Access::Given(_) => bail!("the server of DATABASE_URL is not ours to stop"),
            Access::Private(server) => server.stop(),
        }
    }

    /// Whether a private server has ended by itself.
    pub fn has_ended(&self) -> Result<bool> {
        match &self.access {
            Access::Given(_) => Ok(false),
            Access::Private(server) => server.has_ended(),
        }
    }

    /// Starts a private server again if it has ended, and waits until it is ready.
    pub fn start_again(&self) -> Result<()> {
        match &self.access {
            Access::Given(_) => bail!("the server of DATABASE_URL is not ours to start"),
            Access::Private(server) => server.start_again(),
        }
    }

    /// The folder of a private server's own files and socket.
    pub fn folder(&self) -> Option<&Path> {
        match &self.access {
            Access::Given(_) => None,
            Access::Private(server) => Some(server.folder()),
        }
    }

    /// Makes a database, as a copy of `template` if one is named, and returns its address.
    pub fn create_database(&self, name: &str, template: Option<&str>) -> Result<String> {
        let template = match template {
            Some(template) => format!(" template {}", identifier(template)?),
            None => String::new(),
        };
        self.execute("postgres", &format!("create database {}{template}", identifier(name)?))?;
        Ok(self.url(name))
    }

    /// Drops a database if it exists, with its connections.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("drop database if exists {} with (force)", identifier(name)?))?;
        Ok(())
    }

    /// Whether there is a database of that name.
    pub fn has_database(&self, name: &str) -> Result<bool> {
        let name = name.replace('\'', "''");
        Ok(self.execute("postgres", &format!("select 1 from pg_database where datname = '{name}'"))? == "1")
    }

    /// Runs SQL by `psql` and returns its output, unaligned and without headings.
    pub fn execute(&self, database: &str, sql: &str) -> Result<String> {
        let output = Command::new(&self.psql)
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--no-password"])
            .args(["--command", sql, "--dbname", &self.url(database)])
            .env_remove("PGOPTIONS")
            .env_remove("PGSERVICE")
            .output()
            .with_context(|| format!("could not run {}", self.psql.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the database refused `{sql}`: {}", error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn identifier(name: &str) -> Result<String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    ensure!(plain && !name.is_empty() && name.len() <= 63, "`{name}` is no name for a database");
    Ok(format!("\"{name}\""))
}

/// Replaces the database in a URL of the form `postgres://user@host:port/database?options`.
fn with_database(url: &str, database: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, None), |(address, options)| (address, Some(options)));
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find('/').map_or(address.len(), |at| host + at);
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    format!("{}/{database}{options}", &address[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        let check = |url, expected: &str| assert_eq!(with_database(url, "new"), expected);
        check("postgres://u:p@host:5432/old?sslmode=require", "postgres://u:p@host:5432/new?sslmode=require");
        check("postgres://host", "postgres://host/new");
        check("postgresql:///old?host=/run/pg", "postgresql:///new?host=/run/pg");
    }

    #[test]
    fn names_of_databases_are_checked() {
        assert_eq!(identifier("test_1-a").unwrap(), "\"test_1-a\"");
        assert!(identifier("a\"; drop").is_err());
        assert!(identifier("").is_err());
    }
}
