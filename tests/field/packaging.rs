//! The files for containers and systemd hold what the gateway has: settings, commands, files.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use xtask::project;

use crate::support::gateway::TestGateway;

/// A key-encryption key of zeros, and good enough as a password.
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

const UNIT: &str = "operations/systemd/angarium.service";

fn text(file: &str) -> String {
    fs::read_to_string(project::root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The gateway's variables that a file sets, with their values.
fn variables(file: &str) -> Vec<(String, String)> {
    let text = text(file);
    let lines = text.lines().map(|line| line.trim().trim_end_matches('\\').trim_end());
    let set = lines.filter_map(|line| {
        let line = line.trim_start_matches("ENV ").trim_start_matches("Environment=");
        let (name, value) = line.split_once(": ").or_else(|| line.split_once('='))?;
        name.starts_with("ANGARIUM_").then(|| (name.to_owned(), value.to_owned()))
    });
    set.collect()
}

/// A value as the machine would have it: references resolved, files and folders below `root`.
fn resolved(value: &str, root: &Path) -> String {
    let mut value = value.to_owned();
    while let Some((before, (_, after))) =
        value.split_once("${").and_then(|(it, rest)| Some((it, rest.split_once('}')?)))
    {
        value = format!("{before}{KEY}{after}");
    }
    let Some(path) = value.strip_prefix('/').map(|relative| root.join(relative)) else { return value };
    match path.extension() {
        Some(_) => fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::write(&path, "")).unwrap(),
        None => fs::create_dir_all(&path).unwrap(),
    }
    path.display().to_string()
}

/// The gateway's commands that a file runs.
fn commands(file: &str) -> Vec<Vec<String>> {
    let text = text(file);
    let words = text.lines().filter_map(|line| {
        let line = line.trim();
        if let Some(list) = line.strip_prefix("command: [") {
            return Some(list.trim_end_matches(']').split(", ").map(str::to_owned).collect());
        }
        if let Some((_, list)) = line.split_once("CMD [").filter(|_| !line.starts_with('#')) {
            return Some(list.trim_end_matches(']').split(", ").map(|it| it.trim_matches('"').to_owned()).collect());
        }
        let run = line.strip_prefix("ExecStart=").or_else(|| line.strip_prefix("ExecStartPre="))?;
        Some(run.split(' ').map(str::to_owned).collect::<Vec<_>>())
    });
    words.map(|words| words.into_iter().filter(|word| !word.starts_with('/')).collect()).collect()
}

fn run(binary: &Path, arguments: &[&str], environment: &[(String, String)]) -> Output {
    let environment = environment.iter().map(|(name, value)| (name, value));
    Command::new(binary).env_clear().args(arguments).envs(environment).output().unwrap()
}

#[tokio::test]
async fn settings_and_commands_of_the_packaging_files_exist() {
    let gateway = TestGateway::with(0, "").await;
    let binary = &gateway.settings().binary;
    for (file, settings) in [("Dockerfile", 4), ("compose.yaml", 4), (UNIT, 1)] {
        let root = tempfile::tempdir().unwrap();
        let mut environment: Vec<_> = variables(file);
        assert_eq!(environment.len(), settings, "{file}: {environment:?}");
        environment.iter_mut().for_each(|(_, value)| *value = resolved(value, root.path()));
        environment.push(("DATABASE_URL".to_owned(), "postgres://localhost/angarium".to_owned()));
        if !environment.iter().any(|(name, _)| name == "ANGARIUM_SECRETS__KEY") {
            environment.push(("ANGARIUM_SECRETS__KEY".to_owned(), KEY.to_owned()));
        }
        let checked = run(binary, &["config", "check", "--json"], &environment);
        assert!(checked.status.success(), "{file}: {}", String::from_utf8_lossy(&checked.stderr));
        let commands = commands(file);
        assert!(!commands.is_empty(), "{file} runs nothing");
        for command in commands {
            let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
            assert!(run(binary, &arguments, &[]).status.success(), "{file}: {command:?} is not a command");
        }
    }
}

#[test]
fn files_that_the_packaging_names_exist() {
    let root = project::root();
    let compose = text("compose.yaml");
    let mounted: Vec<&str> =
        compose.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next()).collect();
    assert!(!mounted.is_empty());
    for file in mounted {
        assert!(root.join(file).is_file(), "compose.yaml mounts {file}");
    }
    let image = text("Dockerfile");
    let version = image.split_once("FROM rust:").and_then(|(_, rest)| rest.split_once('-')).map(|(version, _)| version);
    let toolchain = format!("channel = \"{}\"", version.expect("the image's Rust"));
    assert!(text("rust-toolchain.toml").contains(&toolchain), "the Dockerfile's Rust is not the toolchain's");
    assert!(root.join("LICENSE").is_file() && image.contains(" LICENSE "));
    assert!(root.join("plugins/fixture/Cargo.toml").is_file() && image.contains("rm target/plugins/fixture.wasm"));
    // The guide puts each file where the unit expects it.
    let guide = text("docs/production.md");
    for path in text(UNIT)
        .split(['=', '-', ' ', '\n'])
        .filter(|word| word.starts_with("/usr/") || word.starts_with("/etc/angarium"))
    {
        assert!(guide.contains(path), "docs/production.md does not name {path}");
    }
}

#[tokio::test]
async fn the_manual_has_a_page_for_each_command() {
    let gateway = TestGateway::with(0, "").await;
    let folder = tempfile::tempdir().unwrap();
    gateway.settings().command_line(&["man", &folder.path().display().to_string()]).unwrap();
    let page =
        |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(page("angarium.1").contains("angarium\\-serve(1)"), "{}", page("angarium.1"));
    assert!(page("angarium-connection-rotate-secret.1").contains("ANGARIUM_KEY"));
    let missing = folder.path().join("nowhere").display().to_string();
    let refused = gateway.settings().command_line(&["man", &missing]).unwrap_err().to_string();
    assert!(refused.contains("must exist"), "{refused}");
}

#[tokio::test]
async fn a_health_check_says_whether_the_node_can_serve() {
    let mut gateway = TestGateway::start().await;
    let binary = gateway.settings().binary.clone();
    let url = gateway.url("");
    let ask = || {
        let arguments = ["ready", "--json", "--url", &url];
        run(&binary, &arguments, &[])
    };
    let ready = ask();
    assert!(ready.status.success(), "{}", String::from_utf8_lossy(&ready.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&ready.stdout).unwrap()["status"], "ok");
    gateway.kill(0);
    let gone = ask();
    assert!(!gone.status.success());
    assert!(String::from_utf8_lossy(&gone.stderr).contains("/readyz"), "{}", String::from_utf8_lossy(&gone.stderr));
}
