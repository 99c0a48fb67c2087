//! A way to the database that can be cut and mended.

use std::path::PathBuf;

use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// Stands between a gateway and PostgreSQL's socket.
pub struct Proxy {
    folder: tempfile::TempDir,
    server: PathBuf,
    open: watch::Sender<bool>,
}

const SOCKET: &str = ".s.PGSQL.5432";

impl Proxy {
    /// A proxy to the server whose address this is.
    pub fn new(url: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("ang").tempdir_in("/tmp").unwrap();
        let (open, watched) = watch::channel(true);
        let proxy = Self { server: socket_folder(url).join(SOCKET), folder, open };
        let listener = UnixListener::bind(proxy.folder.path().join(SOCKET)).unwrap();
        tokio::spawn(serve(listener, proxy.server.clone(), watched));
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

    /// Lets connections through again.
    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn serve(listener: UnixListener, server: PathBuf, open: watch::Receiver<bool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut open = open.clone();
        if !*open.borrow_and_update() {
            continue;
        }
        let server = server.clone();
        tokio::spawn(async move {
            let Ok(mut upstream) = UnixStream::connect(server).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut upstream) => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}

fn socket_folder(url: &str) -> PathBuf {
    let host = url.split(['?', '&']).find_map(|part| part.strip_prefix("host=")).expect("a database on a socket");
    host.into()
}
