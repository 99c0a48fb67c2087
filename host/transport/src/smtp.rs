//! Mail submission (RFC 5321, RFC 6409) over pooled connections.
//!
//! The server commits to a mail only after the line that ends its data. That line is sent separately, after everything
//! else has left: a fault before it is `not sent`, one after it is unknown. Only the reply to it accepts a mail, and
//! only 354 lets data follow. The session ends at once if a server's replies do not follow the commands.
//!
//! If a server refuses some recipients: when one of the `To` header is refused, the transaction is reset, nothing is
//! sent, and the refusal is the answer, so that a retry or a fallback sends nothing twice. When only others are refused
//! (copies, hidden or not), the mail goes to the rest, and the answer has the server's reply for each recipient: the
//! caller repeats those that were refused for now (RFC 5321, 4.5.4.1), in a separate attempt.
//!
//! A mail has the time of each step (RFC 5321, 4.5.3.2) in place of the call's deadline. Its data is gone while it waits for
//! the last reply.

mod envelope;
mod reply;
mod session;
mod wire;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ring::digest::{SHA256, digest};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use url::Host;

use self::{
    envelope::Envelope,
    reply::ServerReply,
    session::{Commitment, Patience, SmtpSession, Stop},
    wire::{SmtpWire, Stream},
};
use super::{
    Call,
    egress::{Egress, parse_host},
    fault::{invalid, maybe_sent, not_sent},
    http::root_cause,
    scrub::scrubbed,
    tls::TlsRoots,
};
use crate::{byte_budget::BytePermit, sealing::Secret};
use angarium_domain::transmission::{Blob, Fault, FaultKind, RecipientReply, Reply, SmtpSubmission, SmtpTls};

/// Connections kept for each server and account.
const IDLE_PER_SERVER: usize = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that all steps of a submission may take together.
const LONGEST_SUBMISSION: Duration = Duration::from_secs(3600);

/// The properties by which two submissions share a connection. The password's digest is one, so that only submissions
/// with the same password share it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Server {
    host: Host<String>,
    port: u16,
    tls: Security,
    ehlo: String,
    account: Option<(String, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Security {
    None,
    Opportunistic,
    Starttls,
    Implicit,
}

impl Server {
    /// Whether any TLS will do, and none too (RFC 7435). Credentials need a server that is known.
    fn takes_any_tls(&self) -> bool {
        self.tls == Security::Opportunistic && self.account.is_none()
    }
}

/// Submits mail.
pub(super) struct Smtp {
    egress: Arc<Egress>,
    tls: TlsConnector,
    unchecked_tls: TlsConnector,
    ehlo_name: String,
    stop: CancellationToken,
    idle: Mutex<HashMap<Server, Vec<SmtpSession>>>,
}

impl Smtp {
    pub(super) fn new(egress: Arc<Egress>, roots: &TlsRoots, ehlo_name: String, stop: CancellationToken) -> Self {
        Self {
            egress,
            tls: TlsConnector::from(Arc::new(roots.plain_config())),
            unchecked_tls: TlsConnector::from(Arc::new(TlsRoots::unchecked_config())),
            ehlo_name,
            stop,
            idle: Mutex::default(),
        }
    }

    /// Performs a submission, each of its steps within its time.
    pub(super) async fn perform(
        &self,
        mail: Box<SmtpSubmission>,
        blobs: Vec<Blob>,
        mut permit: Option<BytePermit>,
        call: &Call<'_>,
    ) -> Result<Reply, Fault> {
        let host = parse_host(&mail.host)?;
        call.grant.check(&host.to_string())?;
        let password = password(&mail, call)?;
        let server = self.server(&mail, host, password)?;
        let patience = Patience::from(mail.timeouts);
        let mut envelope = Envelope::write(&mail, &blobs, call)?;
        drop((mail, blobs));
        if let Some(permit) = &mut permit {
            permit.shrink(envelope.data.len());
        }
        envelope.permit = permit;
        let commitment = Commitment::new(call.hold);
        let submission = self.submit(&server, password, patience, &mut envelope, &commitment);
        let ended = tokio::select! {
            ended = timeout(LONGEST_SUBMISSION, submission) => ended.map_err(|_| {
                format!("`{}` did not answer within {} s", server.host, LONGEST_SUBMISSION.as_secs())
            }),
            () = self.broken_off(&commitment) => Err("the node stops before the mail was handed over".to_owned()),
        };
        match ended {
            Ok(Ok(mut reply)) => {
                let left_out = envelope.left_out();
                let recipients = envelope.served(&reply);
                if let Some(left_out) = left_out {
                    reply.text = format!("{} (left out: {left_out})", reply.text);
                }
                Ok(scrubbed(answer(reply, recipients), call.secrets, &[] as &[&str]).await)
            }
            Ok(Err(Stop::Refused(reply))) => {
                let recipients = envelope.refused();
                Ok(scrubbed(answer(reply, recipients), call.secrets, &[] as &[&str]).await)
            }
            Ok(Err(Stop::Fault(fault))) => Err(fault),
            Err(detail) if commitment.is_made() => Err(maybe_sent(FaultKind::Timeout, detail)),
            Err(detail) => Err(not_sent(FaultKind::Timeout, detail)),
        }
    }

    /// Waits until the process stops, for a mail that it may take back: one that the server may have taken has its time.
    async fn broken_off(&self, commitment: &Commitment<'_>) {
        self.stop.cancelled().await;
        if commitment.is_made() {
            std::future::pending::<()>().await;
        }
    }

    fn server(&self, mail: &SmtpSubmission, host: Host<String>, password: Option<&Secret>) -> Result<Server, Fault> {
        let ehlo = match (mail.client_name.as_str(), self.ehlo_name.as_str()) {
            ("", "") => "localhost",
            ("", own) => own,
            (given, _) => given,
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-[]:_".contains(c);
        if !ehlo.chars().all(fits) {
            return Err(invalid(format!("`{}` is not a name for EHLO", ehlo.escape_debug())));
        }
        let account = match (&mail.user, password) {
            (Some(user), Some(password)) => Some((user.clone(), digest(&SHA256, password.expose()).as_ref().to_vec())),
            (None, None) => None,
            _ => return Err(invalid("SMTP credentials need both a user and a password")),
        };
        let tls = match mail.tls {
            SmtpTls::None if account.is_some() => {
                return Err(invalid(
                    "credentials do not go over a connection without TLS: set `tls` to `starttls` or `implicit`",
                ));
            }
            SmtpTls::None => Security::None,
            SmtpTls::Opportunistic => Security::Opportunistic,
            SmtpTls::Starttls => Security::Starttls,
            SmtpTls::Implicit => Security::Implicit,
        };
        Ok(Server { host, port: mail.port, tls, ehlo: ehlo.to_owned(), account })
    }

    /// Over an idle connection if there is one. Servers hang up on the idle without a word, so
    /// what fails there before the commitment is done again over a new one.
    async fn submit(
        &self,
        server: &Server,
        password: Option<&Secret>,
        patience: Patience,
        envelope: &mut Envelope,
        commitment: &Commitment<'_>,
    ) -> Result<ServerReply, Stop> {
        if let Some(mut session) = self.take_idle(server) {
            session.wait_as(patience);
            match self.hand_over(server, session, envelope, commitment).await {
                Err(Stop::Fault(_)) if !commitment.is_made() => {}
                Err(Stop::Refused(reply)) if reply.code == 421 && !commitment.is_made() => {}
                end => return end,
            }
        }
        let session = self.connect(server, password, patience).await?;
        self.hand_over(server, session, envelope, commitment).await
    }

    /// One mail over one connection, which is kept if it can serve another.
    async fn hand_over(
        &self,
        server: &Server,
        mut session: SmtpSession,
        envelope: &mut Envelope,
        commitment: &Commitment<'_>,
    ) -> Result<ServerReply, Stop> {
        let end = session.transact(envelope, commitment).await;
        let reusable = match &end {
            Ok(reply) => reply.is_whole,
            // After the data, or before it, a reset brings the session back to its beginning.
            Err(Stop::Refused(reply)) => reply.is_whole && reply.code != 421 && session.reset().await,
            Err(Stop::Fault(_)) => false,
        };
        if reusable {
            self.keep(server, session);
        }
        end
    }

    fn take_idle(&self, server: &Server) -> Option<SmtpSession> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = idle.get_mut(server)?;
        std::iter::from_fn(|| sessions.pop()).find(SmtpSession::is_fresh)
    }

    fn keep(&self, server: &Server, mut session: SmtpSession) {
        session.was_used();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stale = Vec::new();
        idle.retain(|_, sessions| {
            stale.extend(sessions.extract_if(.., |session| !session.is_fresh()));
            !sessions.is_empty()
        });
        let sessions = idle.entry(server.clone()).or_default();
        if sessions.len() < IDLE_PER_SERVER && session.is_fresh() {
            sessions.push(session);
        } else {
            stale.push(session);
        }
        drop(idle);
        for session in stale {
            tokio::spawn(session.quit());
        }
    }

    /// Opens a session by the connection's settings. With opportunistic TLS, a server whose TLS fails is asked once
    /// more without it.
    async fn connect(
        &self,
        server: &Server,
        password: Option<&Secret>,
        patience: Patience,
    ) -> Result<SmtpSession, Stop> {
        let mut session = match self.open(server, server.tls, patience).await {
            Err(Stop::Fault(fault)) if fault.kind == FaultKind::Tls && server.takes_any_tls() => {
                self.open(server, Security::None, patience).await?
            }
            opened => opened?,
        };
        if let (Some((user, _)), Some(password)) = (&server.account, password) {
            if !session.is_secure() {
                let detail = format!(
                    "`{}` does not offer STARTTLS: credentials do not go over a connection without TLS",
                    server.host
                );
                return Err(not_sent(FaultKind::Tls, detail).into());
            }
            session.authenticate(user, password).await?;
        }
        Ok(session)
    }

    /// Connects to a checked address, secures the connection, and introduces itself.
    async fn open(&self, server: &Server, tls: Security, patience: Patience) -> Result<SmtpSession, Stop> {
        let tcp = self.dial(server).await?;
        if tls == Security::Implicit {
            let secure = SmtpWire::secure(self.secure(server, tcp, patience).await?);
            let mut session = SmtpSession::greeted(server.host.clone(), secure, patience).await?;
            session.hello(&server.ehlo).await?;
            return Ok(session);
        }
        let mut session = SmtpSession::greeted(server.host.clone(), SmtpWire::plain(tcp), patience).await?;
        session.hello(&server.ehlo).await?;
        let wanted = matches!(tls, Security::Starttls | Security::Opportunistic);
        if wanted && session.offers_starttls() && session.starttls(tls == Security::Opportunistic).await? {
            let secure = SmtpWire::secure(self.secure(server, session.into_stream(), patience).await?);
            session = SmtpSession::over(server.host.clone(), secure, patience);
            session.hello(&server.ehlo).await?;
        }
        if tls == Security::Starttls && !session.is_secure() {
            let detail = format!("`{}` does not offer STARTTLS, which the connection asks for", server.host);
            return Err(not_sent(FaultKind::Tls, detail).into());
        }
        Ok(session)
    }

    async fn dial(&self, server: &Server) -> Result<TcpStream, Fault> {
        let addresses = self.egress.addresses(&server.host, server.port).await?;
        let mut last = String::new();
        for address in addresses {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Each command waits for its answer: small writes must not wait as well.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "it did not answer in time".to_owned(),
            }
        }
        Err(not_sent(FaultKind::Connect, format!("there is no way to open a connection to `{}`: {last}", server.host)))
    }

    async fn secure<S: Stream>(&self, server: &Server, stream: S, patience: Patience) -> Result<TlsStream<S>, Fault> {
        let failed = |reason: String| {
            not_sent(
                FaultKind::Tls,
                format!("there is no way to open a secure connection to `{}`: {reason}", server.host),
            )
        };
        let name = match &server.host {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(|error| failed(error.to_string()))?,
            Host::Ipv4(address) => ServerName::from(std::net::IpAddr::from(*address)),
            Host::Ipv6(address) => ServerName::from(std::net::IpAddr::from(*address)),
        };
        let connector = if server.takes_any_tls() { &self.unchecked_tls } else { &self.tls };
        match timeout(patience.command, connector.connect(name, stream)).await {
            Ok(secured) => secured.map_err(|error| failed(root_cause(&error))),
            Err(_) => Err(failed("it did not answer in time".to_owned())),
        }
    }
}

fn password<'a>(mail: &SmtpSubmission, call: &Call<'a>) -> Result<Option<&'a Secret>, Fault> {
    mail.password.as_ref().map(|name| call.secrets.newest(name)).transpose()
}

fn answer(reply: ServerReply, recipients: Vec<RecipientReply>) -> Reply {
    Reply::Smtp { code: reply.code, enhanced: reply.enhanced, text: reply.text, recipients }
}
