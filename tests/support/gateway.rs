//! Gateways as an operator runs them: processes of their own on one database.

use std::{
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use angarium::app::{
    Principal,
    change::Changes,
    keys::{self, NewKey},
    tenants,
};
use angarium_domain::audit::Actor;
use angarium_store::Store;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use xtask::{
    gateway::{Gateway, Settings, write_key},
    project::{self, Profile},
};

use super::{
    answers::{Attempt, Connection, Job, Message, Page, Problem, Seen},
    database::{Database, eventually},
    proxy::Proxy,
    sink::Sink,
};

/// Everything that a tenant's key can be allowed.
pub const ALL_SCOPES: &str = "messages:write,messages:read,content:read,connections:write,connections:read,routes:write,routes:read,rules:write,rules:read,providers:read,audit:read";

/// The tenant of a scenario's own key.
const TENANT: &str = "one";

static BUILT: OnceCell<(PathBuf, PathBuf)> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The gateway's binary and the folder of components, built once a run.
async fn built() -> &'static (PathBuf, PathBuf) {
    BUILT
        .get_or_init(|| async {
            tokio::task::spawn_blocking(|| {
                let providers = project::build_providers().expect("the providers build");
                (project::build_gateway(Profile::Dev).expect("the gateway builds"), providers)
            })
            .await
            .unwrap()
        })
        .await
}

/// Makes a key with these scopes, and its tenant if it is new, as the command line does. The database is asked from a
/// thread of its own, because scenarios call this amid their own work.
fn make_key(url: &str, tenant: &str, scopes: &str) -> String {
    let (store, tenant) = (Store::new(url, 1).expect("the address is right"), tenant.to_owned());
    let scopes = scopes.split(',').map(|scope| scope.parse().expect("a scope")).collect();
    let make = async move {
        let (changes, by) = (Changes::bare(store), Actor::command_line("tests"));
        let tenant = match tenants::named(&changes, &tenant).await {
            Ok(known) => known,
            Err(_) => tenants::create(&changes, &by, &tenant, "default").await.expect("a tenant can be made"),
        };
        let new = NewKey { name: "tests".to_owned(), scopes, expires_at: None };
        let by = Principal { tenant: tenant.id, actor: by };
        let (_, credential) = keys::create(&changes, &by, new).await.expect("a key can be made");
        credential.text.as_str().to_owned()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::spawn(move || runtime.block_on(make)).join().expect("the database answers")
}

const KEY: &str = "secrets.key";

/// The folder of a key and the components that were compiled under it: all scenarios share them, from run to run.
fn shared() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gateways");
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        let key = folder.join(KEY);
        if let Err(error) = write_key(&key) {
            // Another run may have been first.
            assert!(key.exists(), "{error:#}");
        }
        folder
    });
    &FOLDER
}

/// A database, a tenant with a key, and the gateways of a scenario. Dropping it stops them.
pub struct TestGateway {
    pub db: Database,
    pub nodes: Vec<Option<Gateway>>,
    pub key: String,
    settings: Settings,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body, which must have come with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// The problem, which must have come with this status.
    #[track_caller]
    pub fn problem(self, status: u16) -> Seen<Problem> {
        Seen::of(self.expect(status))
    }
}

impl TestGateway {
    /// One gateway with short times.
    pub async fn start() -> Self {
        Self::with(1, "").await
    }

    /// Starts a number of gateways on one database, with further configuration as TOML.
    pub async fn with(nodes: usize, extra: &str) -> Self {
        let db = Database::new().await;
        let url = db.url.clone();
        Self::on(db, &url, nodes, extra).await
    }

    /// Starts one gateway whose connection to the database can be cut.
    pub async fn behind_a_proxy(extra: &str) -> (Self, Proxy) {
        let db = Database::new().await;
        let proxy = Proxy::new(&db.url);
        let url = proxy.url(&db.url);
        (Self::on(db, &url, 1, extra).await, proxy)
    }

    /// Starts a number of gateways on this database, which they reach by this address.
    pub async fn on(db: Database, url: &str, nodes: usize, extra: &str) -> Self {
        let (binary, providers) = built().await.clone();
        let folder = tempfile::tempdir().unwrap();
        let shared = shared();
        std::fs::copy(shared.join(KEY), folder.path().join(KEY)).expect("the key can be copied");
        let settings = Settings {
            binary,
            folder: folder.path().to_owned(),
            database: url.to_owned(),
            providers,
            cache: shared.join("components"),
            roles: &["api", "dispatch"],
            name: "node0".to_owned(),
            listen: free(),
            log_filter: "info",
            extra: extra.to_owned(),
            environment: vec![],
        };
        let key = make_key(&db.url, TENANT, ALL_SCOPES);
        let client = client();
        let mut gateway = Self { db, nodes: Vec::new(), key, settings, client, _folder: folder };
        for _ in 0..nodes {
            let node = gateway.new_node().await;
            gateway.nodes.push(Some(node));
        }
        gateway
    }

    /// Starts one more gateway on the same database.
    pub async fn new_node(&self) -> Gateway {
        self.new_node_as(self.settings.roles).await
    }

    /// The same with these roles.
    pub async fn new_node_as(&self, roles: &'static [&'static str]) -> Gateway {
        let name = format!("node{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let settings = Settings { name, roles, listen: free(), ..self.settings.clone() };
        Gateway::start(settings).await.expect("the gateway starts")
    }

    /// Starts one more gateway and does not wait: it may not become ready.
    pub fn spawned_node(&self) -> Gateway {
        self.spawned_node_with(vec![])
    }

    /// The same with these variables in its environment, for a node that may end before it is ready.
    pub fn spawned_node_with(&self, environment: Vec<(&'static str, String)>) -> Gateway {
        let name = format!("node{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let settings = Settings { name, listen: free(), environment, ..self.settings.clone() };
        Gateway::spawn(settings).expect("the process starts")
    }

    /// Starts one more gateway with these variables in its environment.
    pub async fn new_node_with(&self, environment: Vec<(&'static str, String)>) -> Gateway {
        let name = format!("node{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let settings = Settings { name, environment, listen: free(), ..self.settings.clone() };
        Gateway::start(settings).await.expect("the gateway starts")
    }

    /// Replaces the first node by one that fails as `ANGARIUM_FAILPOINTS` says.
    pub async fn arm(&mut self, failpoints: &str) {
        let node = self.nodes[0].take().expect("a node to replace");
        tokio::task::spawn_blocking(move || node.stop()).await.unwrap().expect("it stops by itself");
        self.nodes[0] = Some(self.new_node_with(vec![("ANGARIUM_FAILPOINTS", failpoints.to_owned())]).await);
    }

    /// Waits until the first node has died by itself.
    pub async fn died(&mut self) {
        let mut node = self.nodes[0].take().expect("a node that is to die");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while node.ended().expect("its state can be asked").is_none() {
            assert!(tokio::time::Instant::now() < deadline, "it lives on:\n{}", node.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts a sound node in the place of the first, which is gone.
    pub async fn take_over(&mut self) {
        self.nodes[0] = Some(self.new_node().await);
    }

    /// Kills a node as `kill -9` does.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut gateway) = self.nodes[node].take() {
            gateway.kill().expect("the process can be killed");
        }
    }

    /// The settings of a node, for the command line.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A key of another tenant, which is made with it.
    pub fn key_of(&self, tenant: &str, scopes: &str) -> String {
        make_key(&self.db.url, tenant, scopes)
    }

    /// A further key of the same tenant, with these scopes.
    pub fn key_with(&self, scopes: &str) -> String {
        make_key(&self.db.url, TENANT, scopes)
    }

    /// The first living node's address.
    pub fn url(&self, path: &str) -> String {
        let node = self.nodes.iter().flatten().next().expect("a living node");
        format!("http://{}{path}", node.address())
    }

    /// Sends a message to one of the nodes and answers its id.
    pub async fn send_to(&self, node: usize, message: &Value) -> String {
        let address = self.nodes[node].as_ref().expect("a living node").address();
        let request = self.client.post(format!("http://{address}/v1/messages")).bearer_auth(&self.key);
        id(&answer(request.json(message)).await.expect(202))
    }

    /// Waits until a node's log has this text.
    pub async fn logged(&self, node: usize, text: &str) {
        let log = self.nodes[node].as_ref().expect("a living node").log();
        eventually(&format!("`{text}` in the log"), || async {
            std::fs::read_to_string(&log).unwrap_or_default().contains(text).then_some(())
        })
        .await;
    }

    /// A request with the tenant's key.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.call_as(&self.key, method, path, body).await
    }

    /// A request with some key.
    pub async fn call_as(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut request = self.client.request(method, self.url(path)).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// Uploads a component.
    pub async fn upload(&self, key: &str, path: &str, component: Vec<u8>) -> Answer {
        let request = self.client.post(self.url(path)).bearer_auth(key);
        answer(request.header("content-type", "application/wasm").body(component)).await
    }

    /// A request with further headers.
    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.try_post_with(path, headers, body).await.expect("the gateway answers")
    }

    /// A request that may get no answer.
    pub async fn try_post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Option<Answer> {
        let mut request = self.client.post(self.url(path)).bearer_auth(&self.key).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        try_answer(request).await.ok()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.expect(200)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Creates a connection and answers its id.
    pub async fn connection(&self, uid: &str, provider: &str, config: Value, secrets: Value) -> String {
        let body = json!({"uid": uid, "provider": provider, "config": config, "secrets": secrets});
        id(&self.post("/v1/connections", &body).await.expect(201))
    }

    /// Switches a connection's breaker off, so that it is asked however often it fails.
    pub async fn without_breaker(&self, connection: &str) {
        let off = json!({"guards": {"breaker": {"enabled": false}}});
        self.call(Method::PATCH, &format!("/v1/connections/{connection}"), Some(&off)).await.expect(200);
    }

    /// Creates and activates a route over these connections.
    pub async fn route(&self, channel: &str, spec: Value) -> String {
        let route = self.post("/v1/routes", &json!({"channel": channel, "spec": spec})).await.expect(201);
        let route = id(&route);
        self.post(&format!("/v1/routes/{route}/activate"), &json!({"version": 1})).await.expect(200);
        route
    }

    /// A webhook connection and route to a path of the sink, retried quickly.
    pub async fn webhook(&self, sink: &Sink, path: &str) -> String {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let config = json!({"url": sink.url(path)});
        let connection = self.connection("hook", "webhook", config, json!({"signing_key": secret})).await;
        let retry = json!({"type": "linear", "delay_ms": 50, "max_attempts": 5});
        self.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
        connection
    }

    /// Sends a message and answers its id.
    pub async fn send(&self, message: &Value) -> String {
        id(&self.post("/v1/messages", message).await.expect(202))
    }

    /// Sends a message whose JSON is written by hand, and returns its id.
    pub async fn send_raw(&self, message: &str) -> String {
        let request = self.client.post(self.url("/v1/messages")).bearer_auth(&self.key);
        let request = request.header("content-type", "application/json").body(message.to_owned());
        id(&answer(request).await.expect(202))
    }

    /// The message as it is now.
    pub async fn message(&self, message: &str) -> Seen<Message> {
        Seen::of(self.get(&format!("/v1/messages/{message}")).await)
    }

    /// The message once its delivery has ended.
    pub async fn settled(&self, message: &str) -> Seen<Message> {
        eventually(&format!("the end of {message}"), || async {
            let view = self.message(message).await;
            let open = ["accepted", "scheduled", "queued", "sending"].contains(&view.state.as_str());
            (!open).then_some(view)
        })
        .await
    }

    /// A job, by its id, once it does not run any more.
    pub async fn ended_job(&self, job: &str) -> Seen<Job> {
        eventually(&format!("the end of {job}"), || async {
            let job = Seen::<Job>::of(self.get(&format!("/v1/message-jobs/{job}")).await);
            (job.state != "running").then_some(job)
        })
        .await
    }

    /// `connection:disposition` of every attempt.
    pub async fn attempts(&self, message: &str) -> Vec<String> {
        let list = self.attempt_list(message).await;
        let uid = |it: &Attempt| it.connection_uid.clone().unwrap_or_else(|| "-".to_owned());
        list.iter().map(|it| format!("{}:{}", uid(it), it.disposition)).collect()
    }

    pub async fn attempt_list(&self, message: &str) -> Vec<Seen<Attempt>> {
        self.list(&format!("/v1/messages/{message}/attempts")).await.into_iter().map(Seen::of).collect()
    }

    /// The types of a message's events, in their order.
    pub async fn event_types(&self, message: &str) -> Vec<String> {
        let events = self.list(&format!("/v1/messages/{message}/events")).await;
        events.iter().map(|it| it["type"].as_str().expect("a type").to_owned()).collect()
    }

    /// The connection as it is now, by its id or uid.
    pub async fn shown_connection(&self, name: &str) -> Seen<Connection> {
        Seen::of(self.get(&format!("/v1/connections/{name}")).await)
    }

    /// Where a provider's service reports about a connection, which must be asked for reports.
    pub async fn callback_url(&self, connection: &str) -> String {
        let connection = self.shown_connection(connection).await;
        connection.callback_url.clone().unwrap_or_else(|| panic!("it is not reported about: {connection}"))
    }

    /// The health of a connection, by its uid.
    pub async fn health_of(&self, uid: &str) -> Value {
        let all = self.list("/v1/health/providers").await;
        all.into_iter().find(|it| it["uid"] == uid).unwrap_or_else(|| panic!("no connection {uid}"))
    }

    /// One page of a list.
    pub async fn page(&self, path: &str) -> Seen<Page> {
        Seen::of(self.get(path).await)
    }

    /// The entries of a list's first page.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        self.page(path).await.data.clone()
    }
}

/// Returns a client that follows no redirect. An answer that never comes fails its scenario, rather than delaying all
/// of them.
pub fn client() -> reqwest::Client {
    // Another test may have set it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().expect("a client can be made")
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    try_answer(request).await.expect("the gateway answers")
}

async fn try_answer(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await?;
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    assert_details(&body);
    Ok(Answer { status, headers, body })
}

/// The forms of an error detail: a requirement, a prohibition, or a name that stands for nothing.
const DETAILS: [&str; 4] = ["must ", "is not allowed", "is only allowed", "does not exist"];

/// Every answer that a scenario gets keeps its error details to one grammar, those within a batch too.
fn assert_details(body: &Value) {
    let batch = body["data"].as_array().into_iter().flatten().map(|it| &it["error"]);
    for error in batch.chain([body]).filter_map(|it| it["errors"].as_array()).flatten() {
        let detail = error["detail"].as_str().unwrap_or_default();
        assert!(DETAILS.iter().any(|form| detail.starts_with(form)), "begin it with one of {DETAILS:?}: {error}");
    }
}

#[track_caller]
fn id(body: &Value) -> String {
    body["id"].as_str().unwrap_or_else(|| panic!("no id in {body}")).to_owned()
}

/// Returns a free port.
fn free() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port")
}
