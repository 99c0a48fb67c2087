//! A real Prometheus: it takes the metrics, the rules and the dashboard's queries as they are.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use xtask::{lifeline::Lifeline, project};

use crate::support::{
    database::eventually,
    gateway::{TestGateway, client},
    messages::hook,
    peer,
    sink::{Reply, Sink},
};

/// Panels that a healthy gateway has no data for; all others on the dashboard have data.
const MAY_BE_EMPTY: &[&str] = &["Circuit breakers"];

fn operations(file: &str) -> PathBuf {
    project::root().join("operations").join(file)
}

/// Runs `promtool`, which must report no fault.
#[track_caller]
fn promtool(program: &Path, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program.join("promtool"));
    command.args(arguments).current_dir(operations("prometheus"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{said}");
    said
}

#[test]
fn promtool_takes_the_rules_the_configuration_and_the_rules_tests() {
    let Some(prometheus) = peer::prometheus() else { return };
    promtool(&prometheus, &["check", "rules", "angarium.rules.yml"], "");
    promtool(&prometheus, &["check", "config", "prometheus.yml"], "");
    promtool(&prometheus, &["test", "rules", "angarium.rules.test.yml"], "");
}

/// Each alert has a unit test in which it fires.
#[test]
fn every_alert_is_tested_and_in_the_manual() {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let rules = read(operations("prometheus/angarium.rules.yml"));
    let tests = read(operations("prometheus/angarium.rules.test.yml"));
    let manual = read(project::root().join("docs/operators.md"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        let fires = [format!("alertname=\"{alert}\""), format!("alertname: {alert}\n")];
        assert!(fires.iter().any(|it| tests.contains(it)), "{alert} has no test");
        assert!(manual.contains(&format!("| `{alert}` |")), "{alert} is not in docs/operators.md");
    }
    let parts = ["for: ", "severity: ", "summary: ", "runbook: "].map(|part| rules.matches(part).count());
    assert_eq!(parts, [alerts.len(); 4], "each has a time, a severity, a summary and a runbook line");
}

/// A Prometheus that scrapes one gateway each second.
struct Prometheus {
    url: String,
    client: reqwest::Client,
    _process: Lifeline,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn scrape(program: &Path, gateway: &TestGateway) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = peer::free_port();
        let example = std::fs::read_to_string(operations("prometheus/prometheus.yml")).unwrap();
        let target = gateway.url("").replace("http://", "");
        let config = example.replace("127.0.0.1:8080", &target).replace("_interval: 15s", "_interval: 1s");
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let rules = operations("prometheus/angarium.rules.yml");
        std::fs::copy(rules, folder.path().join("angarium.rules.yml")).unwrap();
        let mut command = Command::new(program.join("prometheus"));
        command.arg("--config.file").arg(folder.path().join("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(folder.path().join("data"));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = peer::start(command, port, &folder.path().join("log")).await;
        let url = format!("http://127.0.0.1:{port}");
        let prometheus = Self { url, client: client(), _process: process, _folder: folder };
        eventually("it answers queries", || prometheus.is_ready()).await;
        prometheus
    }

    /// It takes connections before it does.
    async fn is_ready(&self) -> Option<()> {
        let answer = self.client.get(format!("{}/-/ready", self.url)).send().await.ok()?;
        answer.status().is_success().then_some(())
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = reqwest::Url::parse_with_params(&format!("{}{path}", self.url), query).unwrap();
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// The samples of an expression; an error is ours.
    async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get("/api/v1/query", &[("query", expression)]).await;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// Whether it has a value, that is a number.
    async fn has_data(&self, expression: &str) -> bool {
        let number = |sample: &Value| sample["value"][1].as_str().is_some_and(|it| it != "NaN");
        self.query(expression).await.iter().any(number)
    }
}

/// The panels' titles and queries, with the variables at "all".
fn dashboard() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(operations("grafana/angarium.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(|target| {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
            let expression = expression.replace("$instance", ".*").replace("$provider", ".*");
            assert!(!expression.contains('$'), "{expression}");
            (panel["title"].as_str().unwrap().to_owned(), expression)
        })
    });
    queries.collect()
}

#[tokio::test]
async fn a_real_prometheus_answers_every_query_of_the_dashboard_and_every_alert() {
    let Some(program) = peer::prometheus() else { return };
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let prometheus = Prometheus::scrape(&program, &gateway).await;
    eventually("the first scrape", || async { prometheus.has_data("up == 1").await.then_some(()) }).await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(503), Reply::status(200)]);
    let message = hook();
    for _ in 0..5 {
        let id = gateway.send(&message).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
    }
    let accepted = "angarium_attempts_total{provider=\"webhook\",channel=\"webhook\",disposition=\"accepted\"} == 5";
    eventually("the count of five", || async { prometheus.has_data(accepted).await.then_some(()) }).await;
    for (title, expression) in dashboard() {
        if MAY_BE_EMPTY.contains(&title.as_str()) {
            prometheus.query(&expression).await;
            continue;
        }
        eventually(&format!("data of `{title}` ({expression})"), || async {
            // A rate needs something that goes on.
            gateway.send(&message).await;
            prometheus.has_data(&expression).await.then_some(())
        })
        .await;
    }

    let groups = eventually("the evaluation of every rule", || async {
        let groups = prometheus.get("/api/v1/rules", &[]).await["data"]["groups"].clone();
        groups.as_array().unwrap().iter().all(|it| rules(it).all(|rule| rule["health"] == "ok")).then_some(groups)
    })
    .await;
    let mut firing = BTreeSet::new();
    for rule in groups.as_array().unwrap().iter().flat_map(rules) {
        prometheus.query(rule["query"].as_str().unwrap()).await;
        if rule["state"] == "firing" {
            firing.insert(rule["name"].to_string());
        }
    }
    assert!(firing.is_empty(), "nothing is wrong with this gateway: {firing:?}");

    let text = gateway.call(reqwest::Method::GET, "/metrics", None).await.body;
    promtool(&program, &["check", "metrics"], text.as_str().unwrap());
}

fn rules(group: &Value) -> impl Iterator<Item = &Value> {
    group["rules"].as_array().into_iter().flatten()
}

/// An alert that only the reader of the metrics can raise: the gateway is gone.
#[tokio::test]
async fn a_gateway_that_is_gone_raises_its_alert() {
    let Some(program) = peer::prometheus() else { return };
    let mut gateway = TestGateway::start().await;
    let prometheus = Prometheus::scrape(&program, &gateway).await;
    eventually("the first scrape", || async { prometheus.has_data("up == 1").await.then_some(()) }).await;
    gateway.kill(0);
    let pending = "ALERTS{alertname=\"AngariumDown\",severity=\"critical\"}";
    eventually("the alert", || async { prometheus.has_data(pending).await.then_some(()) }).await;
}
