//! The private cluster, started for real.

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::database::{Cluster, Options};
use xtask::lifeline;

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

#[test]
fn a_cluster_serves_databases_and_ends_with_its_guard() {
    let project = scratch("cluster");
    let cluster = Cluster::start(Options::tests(&project)).unwrap();
    cluster.create_database("template_a", None).unwrap();
    cluster.execute("template_a", "create table t (n int); insert into t values (42)").unwrap();
    cluster.create_database("copy_b", Some("template_a")).unwrap();
    assert_eq!(cluster.execute("copy_b", "select n from t").unwrap(), "42");
    assert!(cluster.has_database("copy_b").unwrap());
    cluster.drop_database("copy_b").unwrap();
    assert!(!cluster.has_database("copy_b").unwrap());
    assert!(cluster.execute("template_a", "select nothing").is_err());

    let Some(process) = cluster.process() else { return };
    assert_eq!(cluster.execute("postgres", "show listen_addresses").unwrap(), "");
    drop(cluster);
    assert!(!lifeline::alive(process));

    let again = Cluster::start(Options::tests(&project)).unwrap();
    assert!(again.has_database("template_a").unwrap(), "the data is kept");
}

#[test]
fn clusters_of_tests_stand_side_by_side() {
    let project = scratch("side-by-side");
    let one = Cluster::start(Options::tests(&project)).unwrap();
    let two = Cluster::start(Options::tests(&project)).unwrap();
    if one.process().is_some() {
        assert_ne!(one.url("postgres"), two.url("postgres"));
    }
}

#[test]
fn a_long_path_with_odd_characters_works() {
    let project = scratch("a folder, with \"odd\" characters").join("and-more-than-a-hundred-bytes-".repeat(4));
    let cluster = Cluster::start(Options::demo(&project)).unwrap();
    assert_eq!(cluster.execute("postgres", "select 1").unwrap(), "1");
    if let Some(socket) = cluster.url("x").split("host=").nth(1).and_then(|rest| rest.split('&').next()) {
        assert!(socket.len() < 90);
    }
}

#[test]
fn a_server_left_by_a_killed_run_is_stopped() {
    let project = scratch("left-over");
    let cluster = Cluster::start(Options::tests(&project)).unwrap();
    let (Some(process), Some(folder)) = (cluster.process(), cluster.folder()) else { return };
    let watchers = Command::new("pgrep").args(["-f", &format!("lifeline INT {process}")]).output();
    let Ok(watchers) = watchers else { return };
    for watcher in String::from_utf8_lossy(&watchers.stdout).lines() {
        lifeline::signal(watcher.parse().unwrap(), "KILL");
    }
    let folder = folder.to_owned();
    std::mem::forget(cluster);
    std::fs::remove_file(folder.with_extension("lock")).unwrap();

    let next = Cluster::start(Options::tests(&project)).unwrap();
    assert_eq!(next.folder(), Some(folder.as_path()));
    assert_ne!(next.process(), Some(process));
    assert_eq!(next.execute("postgres", "select 1").unwrap(), "1");
}

/// A project in /root, say: another place is found, and found again.
#[test]
fn a_folder_that_the_servers_account_cant_reach_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let project = scratch("closed");
    std::fs::create_dir_all(&project).unwrap();
    std::fs::set_permissions(&project, std::fs::Permissions::from_mode(0o700)).unwrap();
    let places: Vec<_> = (0..2)
        .map(|_| {
            let cluster = Cluster::start(Options::tests(&project)).unwrap();
            assert_eq!(cluster.execute("postgres", "select 1").unwrap(), "1");
            cluster.folder().map(Path::to_owned)
        })
        .collect();
    assert_eq!(places[0], places[1]);
    if let Some(elsewhere) = places[0].as_deref().filter(|place| place.starts_with("/var/tmp")) {
        std::fs::remove_dir_all(elsewhere.parent().unwrap()).unwrap();
    }
}
