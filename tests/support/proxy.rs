//! A way to the database that can be cut and mended, and that can lose a COMMIT.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// A proxy between a gateway and PostgreSQL's socket.
pub struct Proxy {
    folder: tempfile::TempDir,
    server: PathBuf,
    open: watch::Sender<bool>,
    trap: Arc<Mutex<Option<Trap>>>,
    /// How long each answer of the server is held back, in milliseconds.
    delay: Arc<AtomicU64>,
}

/// The owner of a connection, by a statement that it has prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Takes messages in.
    Admission,
    /// Writes outcomes.
    Ledger,
}

impl Writer {
    const ALL: [Self; 2] = [Self::Admission, Self::Ledger];

    const fn statement(self) -> &'static [u8] {
        match self {
            Self::Admission => b"insert into idempotency",
            Self::Ledger => b"select l.id, pg_current_xact_id()",
        }
    }
}

/// The point at which a connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The COMMIT never comes.
    OfTheCommit,
    /// The COMMIT is done, and its answer never comes.
    OfTheAnswer,
}

#[derive(Debug, Clone, Copy)]
struct Trap {
    writer: Writer,
    loss: Loss,
}

const SOCKET: &str = ".s.PGSQL.5432";

impl Proxy {
    /// Returns a proxy to the server with this address.
    pub fn new(url: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("ang").tempdir_in("/tmp").unwrap();
        let (open, watched) = watch::channel(true);
        let proxy =
            Self { server: socket_folder(url).join(SOCKET), folder, open, trap: Arc::default(), delay: Arc::default() };
        let listener = UnixListener::bind(proxy.folder.path().join(SOCKET)).unwrap();
        let (trap, delay) = (Arc::clone(&proxy.trap), Arc::clone(&proxy.delay));
        tokio::spawn(serve(listener, proxy.server.clone(), watched, trap, delay));
        proxy
    }

    /// The same database by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        url.replace(&socket_folder(url).display().to_string(), &self.folder.path().display().to_string())
    }

    /// Ends every connection and refuses new ones.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Holds each answer of the server back for so long, as a database far away does.
    pub fn slow(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.open.send_replace(true);
    }

    /// Loses the connection within this writer's next COMMIT.
    pub fn lose(&self, loss: Loss, writer: Writer) {
        *self.trap.lock().unwrap() = Some(Trap { writer, loss });
    }

    /// Whether it has been lost.
    pub fn has_lost(&self) -> bool {
        self.trap.lock().unwrap().is_none()
    }
}

async fn serve(
    listener: UnixListener,
    server: PathBuf,
    open: watch::Receiver<bool>,
    trap: Arc<Mutex<Option<Trap>>>,
    delay: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let mut open = open.clone();
        if !*open.borrow_and_update() {
            continue;
        }
        let (server, trap, delay) = (server.clone(), Arc::clone(&trap), Arc::clone(&delay));
        tokio::spawn(async move {
            let Ok(upstream) = UnixStream::connect(server).await else { return };
            tokio::select! {
                _ = relay(client, upstream, &trap, &delay) => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}

/// Passes on the bytes of either side, until one ends or the trap shuts.
async fn relay(
    mut client: UnixStream,
    mut server: UnixStream,
    trap: &Mutex<Option<Trap>>,
    delay: &AtomicU64,
) -> std::io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut writer = None;
    loop {
        tokio::select! {
            count = client.read(&mut asked) => {
                let bytes = &asked[..count?];
                writer = writer.or_else(|| Writer::ALL.into_iter().find(|it| contains(bytes, it.statement())));
                match sprung(trap, writer, bytes) {
                    _ if bytes.is_empty() => return Ok(()),
                    None => server.write_all(bytes).await?,
                    Some(Loss::OfTheCommit) => return Ok(()),
                    Some(Loss::OfTheAnswer) => {
                        server.write_all(bytes).await?;
                        // Its answer is there once it is done.
                        return server.read(&mut answered).await.map(drop);
                    }
                }
            }
            count = server.read(&mut answered) => {
                let bytes = &answered[..count?];
                if bytes.is_empty() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(delay.load(Ordering::Relaxed))).await;
                client.write_all(bytes).await?;
            }
        }
    }
}

/// Takes the trap away if these bytes are the COMMIT that it waits for.
fn sprung(trap: &Mutex<Option<Trap>>, writer: Option<Writer>, bytes: &[u8]) -> Option<Loss> {
    let mut trap = trap.lock().unwrap();
    let waiting = trap.filter(|trap| Some(trap.writer) == writer && contains(bytes, b"COMMIT\0"))?;
    *trap = None;
    Some(waiting.loss)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn socket_folder(url: &str) -> PathBuf {
    let host = url.split(['?', '&']).find_map(|part| part.strip_prefix("host=")).expect("a database on a socket");
    host.into()
}
