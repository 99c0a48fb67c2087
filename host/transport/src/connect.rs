//! How the HTTP client opens a connection: to a checked address, by TLS for `https`, all within
//! the time for connecting. It sends no request.

use std::{
    error::Error,
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Uri, http::uri::Scheme};
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::Name},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::egress::{Egress, EgressRefusal};

/// For the addresses of a name and for TLS, together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) type ConnectError = Box<dyn Error + Send + Sync>;
type Pending<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Opens connections for one client.
pub(super) struct Connector {
    tcp: HttpConnector<GuardedResolver>,
    tls: TlsConnector,
    /// The same, for servers that want HTTP/1.1.
    tls_http1: TlsConnector,
}

impl Connector {
    pub(super) fn new(egress: &Arc<Egress>, tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(GuardedResolver(egress.clone()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared out among the addresses, so that one that does not answer leaves time for the next.
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let mut http1 = tls.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tcp, tls: TlsConnector::from(Arc::new(tls)), tls_http1: TlsConnector::from(Arc::new(http1)) }
    }

    /// Opens a connection to the origin of an absolute URL; for HTTP/1.1 alone, if requested.
    pub(super) async fn open(&self, target: Uri, http1: bool) -> Result<TokioIo<Wire>, ConnectError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(target, http1)).await {
            Ok(wire) => wire.map(TokioIo::new),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long").into()),
        }
    }

    async fn connect(&self, target: Uri, http1: bool) -> Result<Wire, ConnectError> {
        let secure = target.scheme() == Some(&Scheme::HTTPS);
        let server = secure.then(|| server_name(&target)).transpose()?;
        let tcp = self.tcp.clone().call(target).await?.into_inner();
        Ok(match server {
            None => Wire::Plain(tcp),
            Some(server) => {
                let tls = if http1 { &self.tls_http1 } else { &self.tls };
                Wire::Tls(Box::new(tls.connect(server, tcp).await?))
            }
        })
    }
}

fn server_name(target: &Uri) -> Result<ServerName<'static>, ConnectError> {
    let host = target.host().unwrap_or_default();
    Ok(ServerName::try_from(host.trim_matches(['[', ']']))?.to_owned())
}

/// The resolver that the client asks: only checked addresses leave it.
#[derive(Clone)]
struct GuardedResolver(Arc<Egress>);

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = EgressRefusal;
    type Future = Pending<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EgressRefusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let egress = self.0.clone();
        Box::pin(async move {
            let addresses = egress.resolve(name.as_str()).await?;
            let sockets: Vec<_> = addresses.iter().map(|address| SocketAddr::from((*address, 0))).collect();
            Ok(sockets.into_iter())
        })
    }
}

/// An open connection. TLS is boxed: it is large, and a plain connection should not be.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Whether the two ends agreed to speak HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2"))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }
}
