//! A session with a mail server: greeting, EHLO or HELO, AUTH, and mails one after another. It opens no connection and
//! keeps none.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::time::{Instant, timeout};
use url::Host;

use super::{
    envelope::Envelope,
    reply::ServerReply,
    wire::{Broken, MAX_COMMAND, SmtpWire, Stream},
};
use crate::{
    Hold,
    fault::{invalid, maybe_sent, not_sent},
    sealing::Secret,
};
use angarium_domain::transmission::{Fault, FaultKind, RecipientAnswer, SmtpTimeouts};

/// Servers hang up on the idle after a few minutes; this is well before.
const IDLE_LIFETIME: Duration = Duration::from_secs(30);
/// Mails over one connection; many servers count and hang up at 100.
const MAILS_PER_SESSION: u32 = 90;
/// The time that a server may take to forget a refused mail; a slower connection is not kept.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that a provider may allow for a step.
const LONGEST_STEP: Duration = Duration::from_secs(30 * 60);

/// How long a server may take for each step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    greeting: Duration,
    pub command: Duration,
    data: Duration,
    block: Duration,
    end: Duration,
}

impl From<SmtpTimeouts> for Patience {
    /// Applies RFC 5321, 4.5.3.2, if the provider leaves a time to the host.
    fn from(given: SmtpTimeouts) -> Self {
        let step = |given: Option<u32>, minutes: u64| match given {
            Some(ms) => Duration::from_millis(ms.into()).min(LONGEST_STEP),
            None => Duration::from_secs(minutes * 60),
        };
        Self {
            greeting: step(given.greeting_ms, 5),
            command: step(given.command_ms, 5),
            data: step(given.data_ms, 2),
            block: step(given.block_ms, 3),
            end: step(given.end_ms, 10),
        }
    }
}

/// How a step of the conversation ended early.
pub(super) enum Stop {
    /// The server's definite answer.
    Refused(ServerReply),
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Whether the server was asked to take the mail: from then on it may have done so.
pub(super) struct Commitment<'a> {
    hold: Option<&'a dyn Hold>,
    made: AtomicBool,
}

impl<'a> Commitment<'a> {
    pub(super) const fn new(hold: Option<&'a dyn Hold>) -> Self {
        Self { hold, made: AtomicBool::new(false) }
    }

    pub(super) fn is_made(&self) -> bool {
        self.made.load(Ordering::Relaxed)
    }

    /// Makes it, as long as no other node may have the delivery.
    fn make(&self) -> Result<(), Fault> {
        if self.hold.is_some_and(|hold| !hold.stands()) {
            let detail = "the mail was broken off before its end, since another node may have its delivery by now";
            return Err(not_sent(FaultKind::Timeout, detail));
        }
        self.made.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The extensions that a server offers in its answer to EHLO.
#[derive(Debug, Default, PartialEq, Eq)]
struct Offers {
    starttls: bool,
    /// The most bytes of a mail (RFC 1870); 0 if the server states none.
    size: Option<usize>,
    eight_bit: bool,
    utf8: bool,
    plain: bool,
    login: bool,
}

impl Offers {
    fn parse(reply: &ServerReply) -> Self {
        let mut offers = Self::default();
        for line in reply.text.lines().skip(1) {
            // Old servers write `AUTH=LOGIN`.
            let upper = line.trim().to_ascii_uppercase().replacen("AUTH=", "AUTH ", 1);
            let mut words = upper.split_ascii_whitespace();
            match words.next() {
                Some("STARTTLS") => offers.starttls = true,
                Some("SIZE") => offers.size = Some(words.next().and_then(|size| size.parse().ok()).unwrap_or(0)),
                Some("8BITMIME") => offers.eight_bit = true,
                Some("SMTPUTF8") => offers.utf8 = true,
                Some("AUTH") => {
                    for mechanism in words {
                        offers.plain |= mechanism == "PLAIN";
                        offers.login |= mechanism == "LOGIN";
                    }
                }
                _ => {}
            }
        }
        offers
    }
}

/// An open connection, greeted and introduced.
pub(super) struct SmtpSession {
    host: Host<String>,
    wire: SmtpWire,
    offers: Offers,
    patience: Patience,
    mails: u32,
    used: Instant,
}

impl SmtpSession {
    /// Waits for the greeting.
    pub(super) async fn greeted(host: Host<String>, wire: SmtpWire, patience: Patience) -> Result<Self, Stop> {
        let mut session = Self::over(host, wire, patience);
        let greeting = session.wire.reply(patience.greeting).await;
        let greeting = greeting.map_err(|why| session.stop("the greeting", why))?;
        session.positive("the greeting", greeting)?;
        Ok(session)
    }

    /// A session that goes on over another stream.
    pub(super) fn over(host: Host<String>, wire: SmtpWire, patience: Patience) -> Self {
        Self { host, wire, offers: Offers::default(), patience, mails: 0, used: Instant::now() }
    }

    pub(super) fn into_stream(self) -> Box<dyn Stream> {
        self.wire.into_stream()
    }

    pub(super) const fn is_secure(&self) -> bool {
        self.wire.is_secure()
    }

    pub(super) const fn offers_starttls(&self) -> bool {
        self.offers.starttls
    }

    /// Takes over the times of the next mail.
    pub(super) const fn wait_as(&mut self, patience: Patience) {
        self.patience = patience;
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.used.elapsed() < IDLE_LIFETIME && self.mails < MAILS_PER_SESSION
    }

    pub(super) fn was_used(&mut self) {
        self.used = Instant::now();
    }

    /// EHLO; HELO for a server that does not know it (RFC 5321, 3.2).
    pub(super) async fn hello(&mut self, name: &str) -> Result<(), Stop> {
        let reply = self.command("EHLO", &format!("EHLO {name}")).await?;
        if matches!(reply.code, 500..=502 | 504) {
            self.offers = Offers::default();
            let reply = self.command("HELO", &format!("HELO {name}")).await?;
            return self.positive("HELO", reply).map(drop);
        }
        self.offers = Offers::parse(&self.positive("EHLO", reply)?);
        Ok(())
    }

    /// Asks for TLS; true if it begins now. A session without it continues if the server refuses it and it is
    /// `optional`.
    pub(super) async fn starttls(&mut self, optional: bool) -> Result<bool, Stop> {
        let reply = self.command("STARTTLS", "STARTTLS").await?;
        if optional && reply.is_refusal() && reply.code != 421 {
            return Ok(false);
        }
        self.positive("STARTTLS", reply)?;
        // Bytes injected before TLS must not be read as if they came under it.
        match self.wire.in_step().await {
            Ok(()) => Ok(true),
            Err(Broken::Closed | Broken::Io(_)) => {
                let detail = format!("`{}` closed the connection when TLS was to begin", self.host);
                Err(not_sent(FaultKind::Tls, detail).into())
            }
            Err(why) => Err(self.stop("STARTTLS", why)),
        }
    }

    /// AUTH PLAIN or LOGIN. The server's text of a refusal is not shown: it may repeat the credentials.
    pub(super) async fn authenticate(&mut self, user: &str, password: &Secret) -> Result<(), Stop> {
        let text = password.expose_text().ok_or_else(|| invalid("the SMTP password is not UTF-8"))?;
        let reply = match (self.offers.plain, self.offers.login) {
            (true, login) => {
                let reply = self.auth_plain(user, text).await?;
                if login && reply.code == 504 { self.auth_login(user, text).await? } else { reply }
            }
            (false, true) => self.auth_login(user, text).await?,
            (false, false) => {
                let detail = format!("`{}` offers neither AUTH PLAIN nor AUTH LOGIN", self.host);
                return Err(not_sent(FaultKind::Unauthorized, detail).into());
            }
        };
        match reply.code {
            200..=299 => Ok(()),
            400..=499 => {
                let text = "the server can't check credentials now".to_owned();
                Err(Stop::Refused(ServerReply { text, ..reply }))
            }
            500..=599 => {
                let detail = format!("`{}` refused the credentials with {}", self.host, reply.code);
                Err(not_sent(FaultKind::Unauthorized, detail).into())
            }
            _ => Err(self.out_of_step("AUTH", &reply).into()),
        }
    }

    async fn auth_plain(&mut self, user: &str, password: &str) -> Result<ServerReply, Stop> {
        let response = STANDARD.encode(format!("\0{user}\0{password}"));
        let command = format!("AUTH PLAIN {response}");
        // Credentials that do not fit a command are given when the server asks for them (RFC 4954, 4).
        let fits = command.len() + 2 <= MAX_COMMAND;
        let reply = self.command("AUTH", if fits { &command } else { "AUTH PLAIN" }).await?;
        if reply.code == 334 { self.command("AUTH", &response).await } else { Ok(reply) }
    }

    async fn auth_login(&mut self, user: &str, password: &str) -> Result<ServerReply, Stop> {
        let mut reply = self.command("AUTH", "AUTH LOGIN").await?;
        for response in [user, password] {
            if reply.code == 334 {
                reply = self.command("AUTH", &STANDARD.encode(response)).await?;
            }
        }
        Ok(reply)
    }

    /// MAIL, RCPT, DATA: the server's last word on the mail. Its data is gone once it was written.
    pub(super) async fn transact(
        &mut self,
        envelope: &mut Envelope,
        commitment: &Commitment<'_>,
    ) -> Result<ServerReply, Stop> {
        self.mails += 1;
        let mail = self.mail_command(envelope)?;
        let reply = self.command("MAIL", &mail).await?;
        self.positive("MAIL", reply)?;
        self.recipients(envelope).await?;
        self.data(&envelope.data).await?;
        commitment.make()?;
        envelope.forget_data();
        let reply = self.wire.end_of_data(self.patience.end).await.map_err(|why| self.unknown(&why))?;
        match reply.code {
            200..=299 => Ok(reply),
            400..=599 => Err(Stop::Refused(reply)),
            _ => Err(self.unknown(&Broken::OutOfStep(reply)).into()),
        }
    }

    /// Prepares the session for another mail after a refusal; false if it cannot.
    pub(super) async fn reset(&mut self) -> bool {
        let reply = timeout(RESET_TIMEOUT, self.wire.command("RSET", RESET_TIMEOUT)).await;
        matches!(reply, Ok(Ok(reply)) if reply.code == 250 && reply.is_whole)
    }

    /// Says QUIT. The session is over, whatever the server replies.
    pub(super) async fn quit(mut self) {
        let _ = timeout(QUIT_TIMEOUT, self.wire.command("QUIT", QUIT_TIMEOUT)).await;
    }

    /// DATA, and the data. Only 354 lets it follow, and nothing may be said before its end but a refusal.
    async fn data(&mut self, data: &[u8]) -> Result<(), Stop> {
        let go = self.wire.command("DATA", self.patience.data).await.map_err(|why| self.stop("DATA", why))?;
        match go.code {
            354 if go.is_whole => {}
            400..=599 => return Err(Stop::Refused(go)),
            _ => return Err(self.out_of_step("DATA", &go).into()),
        }
        let why = match self.wire.data(data, self.patience.block).await {
            Ok(()) => return Ok(()),
            // A server that takes no more of it may say so and hang up at once.
            Err(Broken::Io(error)) => self.wire.last_words().await.map_or(Broken::Io(error), Broken::OutOfStep),
            Err(why) => why,
        };
        Err(match why {
            // Amid the data, no other mail can begin.
            Broken::OutOfStep(reply) if reply.is_refusal() => Stop::Refused(ServerReply { is_whole: false, ..reply }),
            why => self.stop("the mail's data", why),
        })
    }

    fn mail_command(&self, envelope: &Envelope) -> Result<String, Stop> {
        let size = envelope.data.len();
        let mut command = format!("MAIL FROM:<{}>", envelope.from);
        if let Some(most) = self.offers.size {
            if most > 0 && size > most {
                // The server's own text (RFC 1870, 6.1), without asking it.
                let text = format!("`{}` takes mails of at most {most} bytes, and this one has {size}", self.host);
                return Err(Stop::Refused(ServerReply::new(552, "5.3.4", text)));
            }
            command.push_str(&format!(" SIZE={size}"));
        }
        if !envelope.data.is_ascii() && self.offers.eight_bit {
            command.push_str(" BODY=8BITMIME");
        }
        if envelope.utf8 {
            if !self.offers.utf8 {
                // RFC 6531, 3.2, and RFC 5248's code for it.
                let text = format!("`{}` takes no addresses that are not ASCII (SMTPUTF8)", self.host);
                return Err(Stop::Refused(ServerReply::new(553, "5.6.7", text)));
            }
            command.push_str(" SMTPUTF8");
        }
        Ok(command)
    }

    /// Names the recipients, and records the server's answer for each. It continues while the mail has a point: until
    /// the recipient of the `To` header is refused, or all are.
    async fn recipients(&mut self, envelope: &mut Envelope) -> Result<(), Stop> {
        envelope.forget_answers();
        let mut refusal: Option<ServerReply> = None;
        let mut is_taken = false;
        for recipient in 0..envelope.recipients.len() {
            let command = format!("RCPT TO:<{}>", envelope.recipients[recipient].address);
            let reply = self.command("RCPT", &command).await?;
            let is_answer = reply.is_refusal() || (reply.is_positive() && reply.is_whole);
            if !is_answer {
                return Err(self.out_of_step("RCPT", &reply).into());
            }
            if envelope.note(recipient, reply.clone())? == RecipientAnswer::Accepted {
                is_taken = true;
            } else if refusal.as_ref().is_none_or(|known| known.code / 100 != 4) {
                // Of several, the passing refusal represents all: some of the recipients are tried again.
                refusal = Some(reply);
            }
        }
        match refusal {
            Some(reply) if !is_taken => Err(Stop::Refused(reply)),
            _ => Ok(()),
        }
    }

    /// Sends a command and reads its reply; `step` is its name for people.
    async fn command(&mut self, step: &str, command: &str) -> Result<ServerReply, Stop> {
        if command.len() + 2 > MAX_COMMAND && step != "AUTH" {
            let detail = format!("{step} must have at most {MAX_COMMAND} bytes (got {})", command.len() + 2);
            return Err(invalid(detail).into());
        }
        self.wire.command(command, self.patience.command).await.map_err(|why| self.stop(step, why))
    }

    fn positive(&self, step: &str, reply: ServerReply) -> Result<ServerReply, Stop> {
        match reply.code {
            200..=299 if reply.is_whole => Ok(reply),
            400..=599 => Err(Stop::Refused(reply)),
            _ => Err(self.out_of_step(step, &reply).into()),
        }
    }

    /// Ends a conversation before the server was asked to take the mail. A server that shuts down may say so at any
    /// time (RFC 5321, 3.8); any other unrequested reply makes the answers ambiguous.
    fn stop(&self, step: &str, why: Broken) -> Stop {
        let (kind, what) = match why {
            Broken::OutOfStep(reply) if reply.code == 421 => return Stop::Refused(reply),
            Broken::OutOfStep(reply) => return self.out_of_step(step, &reply).into(),
            Broken::Io(error) => (FaultKind::Reset, error.to_string()),
            Broken::Closed => (FaultKind::Reset, "the server closed the connection".to_owned()),
            Broken::Late(time) => (FaultKind::Timeout, format!("there was no reply within {} ms", time.as_millis())),
            Broken::NotSmtp => (FaultKind::UnreadableAnswer, "the reply is not SMTP".to_owned()),
        };
        not_sent(kind, format!("the conversation with `{}` broke off at {step}: {what}", self.host)).into()
    }

    /// The server's replies do not follow the commands: matching them would be a guess.
    fn out_of_step(&self, step: &str, reply: &ServerReply) -> Fault {
        let detail = format!("`{}` is out of step: it said {} at {step}; nothing was sent", self.host, reply.code);
        not_sent(FaultKind::UnreadableAnswer, detail)
    }

    /// The server was asked to take the mail, and gave no definite answer.
    fn unknown(&self, why: &Broken) -> Fault {
        let (kind, what) = match why {
            Broken::Io(error) => (FaultKind::Reset, error.to_string()),
            Broken::Closed => (FaultKind::Reset, "it closed the connection".to_owned()),
            Broken::Late(time) => (FaultKind::Timeout, format!("it took longer than {} ms", time.as_millis())),
            Broken::NotSmtp => (FaultKind::UnreadableAnswer, "its reply is not SMTP".to_owned()),
            Broken::OutOfStep(reply) => (FaultKind::UnreadableAnswer, format!("it said {}", reply.code)),
        };
        maybe_sent(kind, format!("`{}` has the whole mail and gave no definite answer: {what}", self.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_however_they_are_written() {
        let offers = |text: &str| Offers::parse(&ServerReply::new(250, "", text.to_owned()));
        let all =
            offers("mx.test\nsize 35882577\n8bitMIME\nSTARTTLS\nSMTPUTF8\nAUTH=LOGIN\nAUTH XOAUTH2 plain\nPIPELINING");
        let expected =
            Offers { starttls: true, size: Some(35_882_577), eight_bit: true, utf8: true, plain: true, login: true };
        assert_eq!(all, expected);
        assert_eq!(offers("mx.test\nSIZE"), Offers { size: Some(0), ..Offers::default() });
        assert_eq!(offers("STARTTLS is my name"), Offers::default());
    }

    #[test]
    fn times_are_those_of_the_standard_unless_they_are_given() {
        let standard = Patience::from(SmtpTimeouts::default());
        let minutes = [standard.greeting, standard.command, standard.data, standard.block, standard.end]
            .map(|time| time.as_secs() / 60);
        assert_eq!(minutes, [5, 5, 2, 3, 10]);
        let given = SmtpTimeouts { end_ms: Some(1_000), greeting_ms: Some(u32::MAX), ..SmtpTimeouts::default() };
        assert_eq!((Patience::from(given).end, Patience::from(given).greeting), (Duration::from_secs(1), LONGEST_STEP));
    }
}
