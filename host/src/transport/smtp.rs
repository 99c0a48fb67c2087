//! Mail submission (RFC 5321, RFC 6409) over pooled connections.
//!
//! The server commits to a mail only after the line that ends its data. That line is sent on its
//! own, after everything else has left: a fault before it is `not sent`, one after it is unknown.
//!
//! Where a server refuses some recipients: if one of the `To` header is refused, the transaction
//! is reset, nothing is sent, and the refusal is the answer, so that a retry or a fallback sends
//! nothing twice. If only others are refused (copies, hidden or not), the mail goes to the rest,
//! as smtplib and Nodemailer do, and the answer's text names who was left out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mail_send::{Credentials, SmtpClient};
use ring::digest::{SHA256, digest};
use rustls::pki_types::ServerName;
use smtp_proto::{AUTH_LOGIN, AUTH_PLAIN, EXT_SMTP_UTF8, EXT_START_TLS, EhloResponse, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use url::Host;

use super::{
    Call,
    egress::{Egress, parse_host},
    fault::{invalid, maybe_sent, not_sent},
    http::root_cause,
    mime,
    scrub::scrubbed,
    tls::TlsRoots,
};
use crate::{
    byte_budget::BytePermit,
    domain::transmission::{Blob, Fault, FaultKind, Reply, SmtpSubmission, SmtpTls},
    sealing::Secret,
};

/// Connections kept for each server and account.
const IDLE_PER_SERVER: usize = 16;
/// Servers hang up on the idle after a few minutes; this is well before.
const IDLE_LIFETIME: Duration = Duration::from_secs(30);
/// Mails over one connection; many servers count and hang up at 100.
const MAILS_PER_SESSION: u32 = 90;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Each call has its own deadline; the library's is out of the way.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a mail's data is in memory while it is sent: as it was written, and with its dots stuffed.
const DATA_COPIES: usize = 2;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What makes two submissions share a connection. The password's digest stands for it, so that
/// only who knows the same password shares.
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

/// An open connection, greeted and authenticated.
struct Session {
    client: SmtpClient<Box<dyn Stream>>,
    offers: EhloResponse<String>,
    mails: u32,
    used: Instant,
}

/// How a step of the conversation ended early.
enum Stop {
    /// The server's definite answer.
    Refused(Response<String>),
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A mail, ready to be handed over.
struct Envelope {
    from: String,
    recipients: Vec<Recipient>,
    data: Vec<u8>,
    utf8: bool,
}

struct Recipient {
    address: String,
    /// Stands in the `To` header: without it, the mail has no point.
    main: bool,
}

/// Submits mail.
pub(super) struct Smtp {
    egress: Arc<Egress>,
    tls: TlsConnector,
    ehlo_name: String,
    idle: Mutex<HashMap<Server, Vec<Session>>>,
}

impl Smtp {
    pub(super) fn new(egress: Arc<Egress>, roots: &TlsRoots, ehlo_name: String) -> Self {
        Self { egress, tls: TlsConnector::from(Arc::new(roots.plain_config())), ehlo_name, idle: Mutex::default() }
    }

    /// Performs a submission within the call's deadline.
    pub(super) async fn perform(
        &self,
        mail: Box<SmtpSubmission>,
        blobs: Vec<Blob>,
        mut permit: Option<BytePermit>,
        call: &Call<'_>,
    ) -> Result<Reply, Fault> {
        let deadline = call.deadline_within(mail.timeout_ms);
        let host = parse_host(&mail.host)?;
        call.grant.check(&host.to_string()).map_err(|detail| not_sent(FaultKind::EgressRefused, detail))?;
        let password = password(&mail, call)?;
        let server = self.server(&mail, host, password)?;
        let envelope = envelope(&mail, &blobs, call)?;
        drop((mail, blobs));
        if let Some(permit) = &mut permit {
            permit.shrink(DATA_COPIES * envelope.data.len());
        }
        let committed = AtomicBool::new(false);
        match timeout_at(deadline, self.submit(&server, password, &envelope, &committed)).await {
            Ok(Ok(reply)) | Ok(Err(Stop::Refused(reply))) => {
                Ok(scrubbed(answer(reply), call.secrets, &[] as &[&str]).await)
            }
            Ok(Err(Stop::Fault(fault))) => Err(fault),
            Err(_) => {
                let detail = format!("`{}` did not answer before the deadline", server.host);
                Err(if committed.load(Ordering::Relaxed) {
                    maybe_sent(FaultKind::Timeout, detail)
                } else {
                    not_sent(FaultKind::Timeout, detail)
                })
            }
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
        envelope: &Envelope,
        committed: &AtomicBool,
    ) -> Result<Response<String>, Stop> {
        if let Some(session) = self.take_idle(server) {
            match self.hand_over(server, session, envelope, committed).await {
                Err(Stop::Fault(_)) if !committed.load(Ordering::Relaxed) => {}
                Err(Stop::Refused(reply)) if reply.code == 421 && !committed.load(Ordering::Relaxed) => {}
                end => return end,
            }
        }
        let session = self.connect(server, password).await?;
        self.hand_over(server, session, envelope, committed).await
    }

    /// One mail over one connection, which is kept if it can serve another.
    async fn hand_over(
        &self,
        server: &Server,
        mut session: Session,
        envelope: &Envelope,
        committed: &AtomicBool,
    ) -> Result<Response<String>, Stop> {
        let end = session.transact(&server.host, envelope, committed).await;
        session.mails += 1;
        let reusable = match &end {
            Ok(_) => true,
            // After the data, or before it, a reset brings the session back to its beginning.
            Err(Stop::Refused(reply)) => {
                reply.code != 421 && session.command("RSET").await.is_ok_and(|reply| reply.code == 250)
            }
            Err(Stop::Fault(_)) => false,
        };
        if reusable {
            self.keep(server, session);
        }
        end
    }

    fn take_idle(&self, server: &Server) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = idle.get_mut(server)?;
        std::iter::from_fn(|| sessions.pop()).find(Session::is_fresh)
    }

    fn keep(&self, server: &Server, mut session: Session) {
        session.used = Instant::now();
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
            tokio::spawn(timeout(QUIT_TIMEOUT, session.client.quit()));
        }
    }

    /// Connects to a checked address, secures the connection, and authenticates.
    async fn connect(&self, server: &Server, password: Option<&Secret>) -> Result<Session, Stop> {
        let tcp = self.dial(server).await?;
        let mut client = match server.tls {
            Security::Implicit => client_of(self.secure(server, tcp).await?),
            Security::None | Security::Opportunistic | Security::Starttls => client_of(tcp),
        };
        let greeting = client.read().await.map_err(|error| broken(&server.host, &error))?;
        positive(greeting)?;
        let mut offers = ehlo(&mut client, server).await?;
        let offered = offers.has_capability(EXT_START_TLS);
        let mut secured = server.tls == Security::Implicit;
        if matches!(server.tls, Security::Starttls | Security::Opportunistic) && offered {
            positive(client.cmd("STARTTLS\r\n").await.map_err(|error| broken(&server.host, &error))?)?;
            client = client_of(self.secure(server, client.stream).await?);
            offers = ehlo(&mut client, server).await?;
            secured = true;
        }
        if server.tls == Security::Starttls && !secured {
            let detail = format!("`{}` does not offer STARTTLS, which the connection asks for", server.host);
            return Err(not_sent(FaultKind::Tls, detail).into());
        }
        if let (Some((user, _)), Some(password)) = (&server.account, password) {
            if !secured {
                let detail = format!(
                    "`{}` does not offer STARTTLS: credentials do not go over a connection without TLS",
                    server.host
                );
                return Err(not_sent(FaultKind::Tls, detail).into());
            }
            authenticate(&mut client, &mut offers, server, user, password).await?;
        }
        Ok(Session { client, offers, mails: 0, used: Instant::now() })
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

    async fn secure<S: Stream>(&self, server: &Server, stream: S) -> Result<tokio_rustls::client::TlsStream<S>, Fault> {
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
        self.tls.connect(name, stream).await.map_err(|error| failed(root_cause(&error)))
    }
}

impl Session {
    fn is_fresh(&self) -> bool {
        self.used.elapsed() < IDLE_LIFETIME && self.mails < MAILS_PER_SESSION
    }

    async fn command(&mut self, command: &str) -> Result<Response<String>, mail_send::Error> {
        self.client.cmd(format!("{command}\r\n")).await
    }

    /// MAIL, RCPT, DATA: the server's last word on the mail.
    async fn transact(
        &mut self,
        host: &Host<String>,
        envelope: &Envelope,
        committed: &AtomicBool,
    ) -> Result<Response<String>, Stop> {
        let mail = self.mail_command(host, envelope)?;
        positive(self.command(&mail).await.map_err(|error| broken(host, &error))?)?;
        let refused = self.recipients(host, envelope).await?;
        let go = self.command("DATA").await.map_err(|error| broken(host, &error))?;
        if go.code != 354 {
            return Err(Stop::Refused(go));
        }
        let stream = &mut self.client.stream;
        let written = async {
            stream.write_all(&dot_stuffed(&envelope.data)).await?;
            stream.flush().await
        };
        written.await.map_err(|error| broken(host, &mail_send::Error::Io(error)))?;
        committed.store(true, Ordering::Relaxed);
        let last = self.command(".").await.map_err(|error| {
            maybe_sent(FaultKind::Reset, format!("`{host}` took the mail and gave no answer: {}", spoken(&error)))
        })?;
        let mut last = positive(last)?;
        if !refused.is_empty() {
            last.message = format!("{} (refused: {})", last.message, refused.join("; "));
        }
        Ok(last)
    }

    fn mail_command(&self, host: &Host<String>, envelope: &Envelope) -> Result<String, Stop> {
        let size = envelope.data.len();
        if self.offers.size > 0 && size > self.offers.size {
            // What the server would say (RFC 1870, 6.1), without asking.
            let message =
                format!("`{host}` takes mails of at most {} bytes, and this one has {size}", self.offers.size);
            return Err(Stop::Refused(Response { code: 552, esc: [5, 3, 4], message }));
        }
        let mut command = format!("MAIL FROM:<{}>", envelope.from);
        if self.offers.size > 0 {
            command.push_str(&format!(" SIZE={size}"));
        }
        if envelope.utf8 {
            if !self.offers.has_capability(EXT_SMTP_UTF8) {
                // RFC 6531, 3.2, and RFC 5248's code for it.
                let message = format!("`{host}` takes no addresses that are not ASCII (SMTPUTF8)");
                return Err(Stop::Refused(Response { code: 553, esc: [5, 6, 7], message }));
            }
            command.push_str(" SMTPUTF8");
        }
        Ok(command)
    }

    /// Names the recipients; answers who was refused, if the mail can go on without them.
    async fn recipients(&mut self, host: &Host<String>, envelope: &Envelope) -> Result<Vec<String>, Stop> {
        let mut refused = Vec::new();
        let mut last = None;
        for recipient in &envelope.recipients {
            let command = format!("RCPT TO:<{}>", recipient.address);
            let reply = self.command(&command).await.map_err(|error| broken(host, &error))?;
            if reply.code / 100 == 2 {
                continue;
            }
            if recipient.main {
                return Err(Stop::Refused(reply));
            }
            refused.push(format!("<{}> {} {}", recipient.address, reply.code, reply.message));
            last = Some(reply);
        }
        match last {
            Some(reply) if refused.len() == envelope.recipients.len() => Err(Stop::Refused(reply)),
            _ => Ok(refused),
        }
    }
}

fn client_of(stream: impl Stream + 'static) -> SmtpClient<Box<dyn Stream>> {
    SmtpClient { stream: Box::new(stream), timeout: NO_TIMEOUT }
}

async fn ehlo(client: &mut SmtpClient<Box<dyn Stream>>, server: &Server) -> Result<EhloResponse<String>, Stop> {
    client.ehlo(&server.ehlo).await.map_err(|error| match error {
        mail_send::Error::UnexpectedReply(reply) => Stop::Refused(reply),
        error => broken(&server.host, &error).into(),
    })
}

/// AUTH PLAIN or LOGIN. What the server says of a refusal stays untold: it may repeat what it
/// was given.
async fn authenticate(
    client: &mut SmtpClient<Box<dyn Stream>>,
    offers: &mut EhloResponse<String>,
    server: &Server,
    user: &str,
    password: &Secret,
) -> Result<(), Stop> {
    // The library would begin an exchange it can't end with any other mechanism.
    offers.auth_mechanisms &= AUTH_PLAIN | AUTH_LOGIN;
    let text = password.expose_text().ok_or_else(|| invalid("the SMTP password is not UTF-8"))?;
    let credentials = Credentials::Plain { username: user, secret: text };
    let host = &server.host;
    match client.authenticate(&credentials, &*offers).await {
        Ok(_) => Ok(()),
        Err(mail_send::Error::AuthenticationFailed(reply) | mail_send::Error::UnexpectedReply(reply))
            if reply.code / 100 == 4 =>
        {
            Err(Stop::Refused(Response { message: "the server can't check credentials now".to_owned(), ..reply }))
        }
        Err(mail_send::Error::AuthenticationFailed(reply) | mail_send::Error::UnexpectedReply(reply)) => {
            Err(not_sent(FaultKind::Unauthorized, format!("`{host}` refused the credentials with {}", reply.code))
                .into())
        }
        Err(mail_send::Error::UnsupportedAuthMechanism) => {
            Err(not_sent(FaultKind::Unauthorized, format!("`{host}` offers neither AUTH PLAIN nor AUTH LOGIN")).into())
        }
        Err(mail_send::Error::Io(error)) => Err(broken(host, &mail_send::Error::Io(error)).into()),
        Err(_) => Err(not_sent(FaultKind::Unauthorized, format!("`{host}` broke off the authentication")).into()),
    }
}

fn password<'a>(mail: &SmtpSubmission, call: &Call<'a>) -> Result<Option<&'a Secret>, Fault> {
    mail.password.as_ref().map(|name| call.secrets.newest(name)).transpose()
}

fn envelope(mail: &SmtpSubmission, blobs: &[Blob], call: &Call<'_>) -> Result<Envelope, Fault> {
    let from = if mail.mail_from.is_empty() { String::new() } else { mime::mailbox(&mail.mail_from)? };
    let main = mail.message.to.iter().map(|to| mime::mailbox(&to.value)).collect::<Result<Vec<_>, _>>()?;
    let recipients = mail.rcpt_to.iter().map(|to| {
        let address = mime::mailbox(to)?;
        Ok(Recipient { main: main.contains(&address), address })
    });
    let recipients = recipients.collect::<Result<Vec<_>, Fault>>()?;
    if recipients.is_empty() {
        return Err(invalid("the mail has no recipient"));
    }
    let mut data = mime::write(&mail.message, call.material(blobs))?;
    if let Some(dkim) = &mail.dkim {
        data = mime::signed(data, dkim, call.secrets.newest(&dkim.key)?)?;
    }
    let utf8 = !from.is_ascii() || recipients.iter().any(|to| !to.address.is_ascii()) || !data.is_ascii();
    Ok(Envelope { from, recipients, data, utf8 })
}

/// RFC 5321, 4.5.2. The data's lines end in CRLF, all of them.
fn dot_stuffed(data: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let begins_with_dot = |at: usize| at == 0 || data[..at].ends_with(b"\r\n");
    let dots: Vec<usize> = (0..data.len()).filter(|at| data[*at] == b'.' && begins_with_dot(*at)).collect();
    if dots.is_empty() {
        return data.into();
    }
    let mut out = Vec::with_capacity(data.len() + dots.len());
    let mut from = 0;
    for dot in dots {
        out.extend_from_slice(&data[from..dot]);
        out.push(b'.');
        from = dot;
    }
    out.extend_from_slice(&data[from..]);
    out.into()
}

fn positive(reply: Response<String>) -> Result<Response<String>, Stop> {
    if reply.code / 100 == 2 { Ok(reply) } else { Err(Stop::Refused(reply)) }
}

/// A conversation that broke before the server could commit itself.
fn broken(host: &Host<String>, error: &mail_send::Error) -> Fault {
    let kind = match error {
        mail_send::Error::UnparseableReply => FaultKind::UnreadableAnswer,
        _ => FaultKind::Reset,
    };
    not_sent(kind, format!("the conversation with `{host}` broke off: {}", spoken(error)))
}

/// The error without anything that the server said.
fn spoken(error: &mail_send::Error) -> String {
    match error {
        mail_send::Error::Io(error) => error.to_string(),
        mail_send::Error::Tls(error) => error.to_string(),
        mail_send::Error::UnparseableReply => "its answer ended early or is not SMTP".to_owned(),
        _ => "its answer was not expected".to_owned(),
    }
}

fn answer(reply: Response<String>) -> Reply {
    let [class, subject, detail] = reply.esc;
    let enhanced = (class != 0).then(|| format!("{class}.{subject}.{detail}"));
    Reply::Smtp { code: reply.code, enhanced, text: reply.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_that_begin_a_line_are_doubled() {
        let stuffed = |text: &str| String::from_utf8(dot_stuffed(text.as_bytes()).into_owned()).unwrap();
        assert_eq!(stuffed("a\r\nb.\r\n"), "a\r\nb.\r\n");
        assert_eq!(stuffed(".a\r\n.\r\n..b\r\n"), "..a\r\n..\r\n...b\r\n");
    }
}
