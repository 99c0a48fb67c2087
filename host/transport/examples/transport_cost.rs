//! Measures the memory of a request in flight, and the CPU time of a request: `cargo run --release --example
//! transport_cost`.
//!
//! The receiver is a process of its own (the same program), so that only the sender is measured.

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    mem::size_of_val,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use angarium_domain::{
    ids::{ConnectionId, TenantId},
    transmission::{
        Auth, Encoding, HttpRequest, KeyFormat, Kv, Method, Segment, Signature, SignatureAlgorithm, Transmission,
    },
};
use angarium_transport::{Call, HostGrant, Secrets, Transport, TransportSettings, sealing::Secret};
use cpu_time::ProcessTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

type Failure = Box<dyn Error + Send + Sync>;

const IN_FLIGHT: usize = 10_000;
const HELD: Duration = Duration::from_secs(8);
const CONCURRENCY: usize = 64;
const REQUESTS: usize = 64_000;

fn main() -> Result<(), Failure> {
    if let Some(held) = env::args().nth(1) {
        return receive(Duration::from_millis(held.parse()?));
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        cpu_of_a_request().await?;
        memory_in_flight().await
    })
}

/// CPU time of one signed webhook over kept connections.
async fn cpu_of_a_request() -> Result<(), Failure> {
    let receiver = Receiver::start(Duration::ZERO)?;
    let sender = Arc::new(Sender::new(&receiver)?);
    sender.run(CONCURRENCY, 50).await?;
    let (cpu, began) = (ProcessTime::now(), Instant::now());
    sender.run(CONCURRENCY, REQUESTS / CONCURRENCY).await?;
    let (cpu, wall) = (cpu.elapsed() / REQUESTS as u32, began.elapsed());
    println!("{REQUESTS} requests, {CONCURRENCY} at a time: {cpu:?} of CPU each, {wall:?} in all");
    Ok(())
}

/// Memory of one request that waits for its answer.
async fn memory_in_flight() -> Result<(), Failure> {
    let receiver = Receiver::start(HELD)?;
    let sender = Arc::new(Sender::new(&receiver)?);
    println!("the future of one request: {} bytes", sender.size());
    for round in 1..=2 {
        let before = resident()?;
        let running = tokio::spawn({
            let sender = sender.clone();
            async move { sender.run(IN_FLIGHT, 1).await }
        });
        tokio::time::sleep(HELD - Duration::from_secs(1)).await;
        let during = resident()?;
        println!(
            "round {round}: {before} KiB before, {during} KiB with {IN_FLIGHT} in flight: {:.1} KiB each",
            (during - before) as f64 / IN_FLIGHT as f64
        );
        running.await??;
    }
    Ok(())
}

fn resident() -> Result<i64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

struct Sender {
    transport: Transport,
    transmission: Transmission,
    secrets: Secrets,
    granted: Vec<String>,
    config: serde_json::Value,
    ids: (TenantId, ConnectionId),
}

impl Sender {
    fn new(receiver: &Receiver) -> Result<Self, Failure> {
        let settings = TransportSettings { allow: vec!["127.0.0.0/8".parse()?], ..TransportSettings::default() };
        Ok(Self {
            transport: Transport::new(settings)?,
            transmission: webhook(&receiver.url),
            secrets: [("key".to_owned(), vec![Secret::new("a key of thirty-two characters..")])].into_iter().collect(),
            granted: vec!["127.0.0.1".to_owned()],
            config: serde_json::json!({}),
            ids: (TenantId::new(), ConnectionId::new()),
        })
    }

    async fn send(&self) -> Result<(), angarium_domain::transmission::Fault> {
        self.transport.perform(self.transmission.clone().into(), &self.call()).await.map(drop)
    }

    fn size(&self) -> usize {
        size_of_val(&self.transport.perform(self.transmission.clone().into(), &self.call()))
    }

    fn call(&self) -> Call<'_> {
        Call {
            tenant: self.ids.0,
            connection: self.ids.1,
            secrets: &self.secrets,
            grant: HostGrant {
                provider: "example",
                declared: &self.granted,
                granted: &self.granted,
                config: &self.config,
                to: None,
            },
            deadline: Instant::now() + Duration::from_secs(30),
            now: jiff::Timestamp::UNIX_EPOCH,
            hold: None,
            trace: None,
        }
    }

    /// Runs a number of tasks, each with a number of requests one after the other.
    async fn run(self: &Arc<Self>, tasks: usize, each: usize) -> Result<(), Failure> {
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            let sender = self.clone();
            running.spawn(async move {
                for _ in 0..each {
                    sender.send().await?;
                }
                Ok::<_, angarium_domain::transmission::Fault>(())
            });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(())
    }
}

fn webhook(url: &str) -> Transmission {
    let header = |name: &str, value: &str| Kv { name: name.to_owned(), value: value.to_owned() };
    let signature = Signature {
        algorithm: SignatureAlgorithm::HmacSha256,
        key: "key".to_owned(),
        key_format: KeyFormat::Raw,
        message: vec![Segment::Text("msg_1.1700000000.".to_owned()), Segment::Body],
        encoding: Encoding::Base64,
        prefix: "v1,".to_owned(),
    };
    Transmission::Http(Box::new(HttpRequest {
        method: Method::Post,
        url: url.to_owned(),
        headers: vec![
            header("content-type", "application/json"),
            header("webhook-id", "msg_1"),
            header("webhook-timestamp", "1700000000"),
        ],
        body: vec![Segment::Text(format!("{{\"text\":\"{}\"}}", "x".repeat(1000)))],
        auth: vec![Auth::Signatures {
            header: "webhook-signature".to_owned(),
            separator: " ".to_owned(),
            signatures: vec![signature],
        }],
        timeout_ms: None,
    }))
}

/// A receiver in a process of its own; it ends with the sender.
struct Receiver {
    process: Child,
    url: String,
}

impl Receiver {
    fn start(held: Duration) -> Result<Self, Failure> {
        let mut process = Command::new(env::current_exe()?)
            .arg(held.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        BufReader::new(process.stdout.take().ok_or("no output")?).read_line(&mut url)?;
        Ok(Self { process, url: url.trim().to_owned() })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a receiver that answers each request after a while.
fn receive(held: Duration) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}/in", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream, held));
        }
    })
}

/// Each request comes whole in a few reads: its end is the end of its JSON.
async fn answer(mut stream: TcpStream, held: Duration) {
    let mut buffer = vec![0; 4096];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await {
        filled += read;
        if !buffer[..filled].ends_with(b"\"}") {
            continue;
        }
        filled = 0;
        tokio::time::sleep(held).await;
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok")
            .await
            .is_err()
        {
            return;
        }
    }
}
