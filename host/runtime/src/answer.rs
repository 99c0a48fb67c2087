//! Checks a guest's answer. A step passes here before it is followed: values that no honest guest returns are refused
//! by the field's name, and values that only the other side's answer can bring (an overlong message, a NUL) are made
//! harmless.

use url::Url;

use super::{MAX_STATE, call::GuestFaultKind, guest::cut};
use angarium_domain::{
    dns::is_dns_name,
    provider::{Cost, Disposition, Judgement, Step},
    transmission::{Auth, Dkim, HttpRequest, Kv, Mail, Segment, SmtpSubmission, Transmission},
};

const MAX_URL: usize = 8 << 10;
/// A message's and a connection's own, and those that a provider adds.
const MAX_HEADERS: usize = 192;
const MAX_HEADER_VALUE: usize = 16 << 10;
const MAX_RECIPIENTS: usize = 1_000;
const MAX_ADDRESS: usize = 512;
pub(super) const MAX_CODE: usize = 128;
pub(super) const MAX_MESSAGE: usize = 1 << 10;
const MAX_EXTERNAL_ID: usize = 1 << 10;

/// A field of an answer that the contract does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub(super) struct Invalid {
    pub(super) kind: GuestFaultKind,
    pub(super) field: String,
    pub(super) problem: String,
}

type Checked = Result<(), Invalid>;

/// The guest broke the contract.
pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
    Invalid { kind: GuestFaultKind::InvalidAnswer, field: field.into(), problem: problem.into() }
}

/// The transmission can't be performed; the message may have brought it in.
fn unsendable(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
    Invalid { kind: GuestFaultKind::InvalidTransmission, field: field.into(), problem: problem.into() }
}

/// How many outcomes end a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcomes {
    /// One for each given delivery.
    Exactly(usize),
    /// The call knows the first step's deliveries no more; the caller does.
    AtMost(usize),
}

/// Checks a step, and makes its texts harmless.
pub(super) fn step(step: &mut Step, expected: Outcomes) -> Checked {
    match step {
        Step::Send { transmission, state } => {
            self::state("send.state", state)?;
            self::transmission(transmission)
        }
        Step::Wait { ms, state } => {
            self::state("wait.state", state)?;
            milliseconds("wait.ms", *ms)
        }
        Step::Done(outcomes) => {
            count(outcomes.len(), expected)?;
            outcomes.iter_mut().enumerate().try_for_each(|(index, each)| judgement(&format!("done[{index}]"), each))
        }
    }
}

/// Checks a verdict on all deliveries: it says that nothing was sent, so it can't say accepted.
pub(super) fn verdict(verdict: &mut Judgement) -> Checked {
    if verdict.disposition == Disposition::Accepted {
        return Err(invalid(
            "outcome.disposition",
            "must not be `accepted` in an error, which says that nothing was taken",
        ));
    }
    judgement("outcome", verdict)
}

fn state(field: &str, state: &[u8]) -> Checked {
    if state.len() <= MAX_STATE {
        return Ok(());
    }
    let problem = format!("must have at most {MAX_STATE} bytes (got {})", state.len());
    Err(Invalid { kind: GuestFaultKind::State, field: field.to_owned(), problem })
}

fn milliseconds(field: &str, ms: f64) -> Checked {
    if ms.is_finite() && ms >= 0.0 {
        return Ok(());
    }
    Err(invalid(field, format!("must be a number of milliseconds (got {ms})")))
}

fn count(given: usize, expected: Outcomes) -> Checked {
    let wanted = match expected {
        Outcomes::Exactly(1) | Outcomes::AtMost(1) if given != 1 => "1 outcome".to_owned(),
        Outcomes::Exactly(wanted) if given != wanted => format!("{wanted} outcomes"),
        Outcomes::AtMost(most) if given == 0 || given > most => format!("1 to {most} outcomes"),
        Outcomes::Exactly(_) | Outcomes::AtMost(_) => return Ok(()),
    };
    Err(invalid("done", format!("must have {wanted} (got {given})")))
}

// ── Outcomes ──────────────────────────────────────────────────────────────────────────────

fn judgement(at: &str, judgement: &mut Judgement) -> Checked {
    if !is_word(&judgement.unified_code) {
        let problem =
            format!("must be a word such as `invalid_recipient` (got {:?})", excerpt(&judgement.unified_code));
        return Err(invalid(format!("{at}.unified_code"), problem));
    }
    judgement.retry_after_ms = judgement.retry_after_ms.map(|ms| retry_after(at, ms)).transpose()?;
    clean(&mut judgement.code, MAX_CODE);
    clean(&mut judgement.message, MAX_MESSAGE);
    judgement.external_id = judgement.external_id.take().filter(|id| is_external_id(id));
    Ok(())
}

/// A date that has passed gives a negative number: that is now.
fn retry_after(at: &str, ms: f64) -> Result<f64, Invalid> {
    if ms.is_finite() {
        return Ok(ms.max(0.0));
    }
    Err(invalid(format!("{at}.retry_after_ms"), format!("must be a number of milliseconds (got {ms})")))
}

/// A cost in whole millionths.
pub(super) fn cost(at: &str, micros: f64, currency: String) -> Result<Cost, Invalid> {
    // Above 2^53 a float is no whole number any more; a delivery costs less than nine milliards.
    if !(0.0..=9.0e15).contains(&micros) {
        return Err(invalid(format!("{at}.cost.micros"), format!("must be an amount (got {micros})")));
    }
    if !is_currency(&currency) {
        let problem = format!("must be a currency's three letters (got {:?})", excerpt(&currency));
        return Err(invalid(format!("{at}.cost.currency"), problem));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked above")]
    let micros = micros.round() as i64;
    Ok(Cost { micros, currency })
}

/// An `ext` that is not a JSON object would fail its later readers.
pub(super) fn ext(at: &str, text: &str) -> Checked {
    if text == "{}" || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok() {
        return Ok(());
    }
    Err(invalid(format!("{at}.ext"), "must be a JSON object"))
}

pub(super) fn is_currency(text: &str) -> bool {
    text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// Lower-case letters, digits and underscores, a letter first, at most 64.
pub(super) fn is_word(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The other side's text in a form that fits a database and a log line.
pub(super) fn clean(text: &mut String, most: usize) {
    cut(text, most);
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
}

/// Cut or cleaned, an id would name something else: rather none.
pub(super) fn is_external_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_EXTERNAL_ID && !id.contains(char::is_control)
}

/// Returns the part of a text that an error shows.
pub(super) fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(80)]
}

// ── Transmissions ─────────────────────────────────────────────────────────────────────────

fn transmission(transmission: &Transmission) -> Checked {
    match transmission {
        Transmission::Http(request) => http(request),
        Transmission::Smtp(submission) => smtp(submission),
    }
}

fn http(request: &HttpRequest) -> Checked {
    url("http.url", &request.url)?;
    headers("http.headers", &request.headers)?;
    no_body("http.body", &request.body)?;
    let mut numbered = request.auth.iter().enumerate();
    numbered.try_for_each(|(index, each)| auth(&format!("http.auth[{index}]"), each))
}

fn url(field: &str, text: &str) -> Checked {
    if text.len() > MAX_URL {
        return Err(unsendable(field, format!("must have at most {MAX_URL} bytes (got {})", text.len())));
    }
    let url = Url::parse(text).map_err(|error| unsendable(field, format!("must be a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unsendable(field, format!("must have the scheme http or https (got `{}`)", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(unsendable(field, "must hold no credentials: name a secret in `auth`"));
    }
    Ok(())
}

fn headers(field: &str, headers: &[Kv]) -> Checked {
    if headers.len() > MAX_HEADERS {
        return Err(unsendable(field, format!("must have at most {MAX_HEADERS} entries (got {})", headers.len())));
    }
    headers.iter().enumerate().try_for_each(|(index, header)| {
        let at = format!("{field}[{index}]");
        header_name(&at, &header.name)?;
        header_value(&at, &header.value)
    })
}

/// A token (RFC 9110, 5.6.2); a mail's field names are a superset, whose rest is unused.
fn header_name(field: &str, name: &str) -> Checked {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(is_token) {
        return Ok(());
    }
    Err(unsendable(field, format!("must have a name that HTTP allows (got {:?})", excerpt(name))))
}

fn header_value(field: &str, value: &str) -> Checked {
    if value.len() > MAX_HEADER_VALUE {
        return Err(unsendable(
            field,
            format!("must have a value of at most {MAX_HEADER_VALUE} bytes (got {})", value.len()),
        ));
    }
    if value.chars().any(|char| char.is_control() && char != '\t') {
        return Err(unsendable(field, "must have no control character in its value"));
    }
    Ok(())
}

fn no_body(field: &str, segments: &[Segment]) -> Checked {
    match segments.iter().position(|segment| *segment == Segment::Body) {
        Some(index) => {
            Err(invalid(format!("{field}[{index}]"), "is not allowed to be `body`: only a signed text may hold it"))
        }
        None => Ok(()),
    }
}

fn auth(at: &str, auth: &Auth) -> Checked {
    match auth {
        Auth::Basic { user, .. } => no_body(&format!("{at}.user"), user),
        Auth::Header { name, .. } => header_name(&format!("{at}.name"), name),
        Auth::OAuth2 { token_url, .. } => url(&format!("{at}.token_url"), token_url),
        Auth::Signatures { header, signatures, .. } if signatures.is_empty() => {
            Err(invalid(format!("{at}.signatures"), format!("must not be empty for the header {:?}", excerpt(header))))
        }
        Auth::Signatures { header, .. } => header_name(&format!("{at}.header"), header),
        Auth::Bearer { .. } | Auth::Query { .. } | Auth::AwsSigV4 { .. } | Auth::ClientCertificate { .. } => Ok(()),
    }
}

fn smtp(submission: &SmtpSubmission) -> Checked {
    let SmtpSubmission { host, port, mail_from, rcpt_to, message, dkim, .. } = submission;
    if host.is_empty() || host.len() > 255 || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unsendable("smtp.host", format!("must be a host's name (got {:?})", excerpt(host))));
    }
    if *port == 0 {
        return Err(unsendable("smtp.port", "must not be 0"));
    }
    if rcpt_to.is_empty() || rcpt_to.len() > MAX_RECIPIENTS {
        return Err(unsendable(
            "smtp.rcpt_to",
            format!("must have 1 to {MAX_RECIPIENTS} addresses (got {})", rcpt_to.len()),
        ));
    }
    if !mail_from.is_empty() {
        envelope("smtp.mail_from", mail_from)?;
    }
    if let Some(Dkim { domain, selector, .. }) = dkim {
        dns_name("smtp.dkim.domain", domain)?;
        dns_name("smtp.dkim.selector", selector)?;
    }
    rcpt_to.iter().enumerate().try_for_each(|(index, address)| envelope(&format!("smtp.rcpt_to[{index}]"), address))?;
    mail(message)
}

/// A name that is written into a signature's tags and asked for in the DNS.
fn dns_name(field: &str, name: &str) -> Checked {
    if is_dns_name(name) {
        return Ok(());
    }
    Err(unsendable(field, format!("must be a DNS name such as `mail.example.org` (got {:?})", excerpt(name))))
}

/// An address as SMTP's envelope holds it. Whether it exists is the server's to say.
fn envelope(field: &str, address: &str) -> Checked {
    let forbidden = |char: char| char.is_control() || matches!(char, '<' | '>');
    if !address.is_empty() && address.len() <= MAX_ADDRESS && !address.contains(forbidden) {
        return Ok(());
    }
    Err(unsendable(field, format!("must be an address (got {:?})", excerpt(address))))
}

fn mail(mail: &Mail) -> Checked {
    if !mail.date_ms.is_finite() {
        return Err(invalid("smtp.message.date_ms", format!("must be a time (got {})", mail.date_ms)));
    }
    let id = &mail.message_id;
    if id.is_empty() || id.len() > 255 || !id.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>".contains(&byte)) {
        return Err(invalid("smtp.message.message_id", format!("must be a message id (got {:?})", excerpt(id))));
    }
    headers("smtp.message.headers", &mail.headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::transmission::{Encoding, KeyFormat};
    use angarium_domain::transmission::{Mailbox, Method, Signature, SignatureAlgorithm, SmtpTimeouts, SmtpTls};

    fn outcome() -> Judgement {
        Judgement {
            disposition: Disposition::Accepted,
            code: "202".to_owned(),
            unified_code: "ok".to_owned(),
            message: "Taken.".to_owned(),
            external_id: Some("id-1".to_owned()),
            retry_after_ms: None,
            cost: None,
            units: None,
        }
    }

    fn request() -> HttpRequest {
        HttpRequest {
            method: Method::Post,
            url: "https://example.org/hook".to_owned(),
            headers: Vec::new(),
            body: vec![Segment::Text("x".to_owned())],
            auth: Vec::new(),
            timeout_ms: None,
        }
    }

    fn submission() -> SmtpSubmission {
        let ann = Mailbox { value: "ann@example.org".to_owned(), name: None };
        SmtpSubmission {
            host: "mail.example.org".to_owned(),
            port: 587,
            tls: SmtpTls::Starttls,
            user: None,
            password: None,
            client_name: String::new(),
            mail_from: String::new(),
            rcpt_to: vec![ann.value.clone()],
            message: Mail {
                sender: ann,
                reply_to: Vec::new(),
                to: Vec::new(),
                cc: Vec::new(),
                subject: String::new(),
                message_id: "1@example.org".to_owned(),
                date_ms: 0.0,
                text: None,
                html: None,
                headers: Vec::new(),
                blobs: Vec::new(),
            },
            dkim: None,
            timeouts: SmtpTimeouts::default(),
        }
    }

    fn refused(mut given: Step) -> (GuestFaultKind, String) {
        let invalid = step(&mut given, Outcomes::Exactly(1)).unwrap_err();
        (invalid.kind, invalid.field)
    }

    fn refused_http(change: impl FnOnce(&mut HttpRequest)) -> (GuestFaultKind, String) {
        let mut request = request();
        change(&mut request);
        refused(Step::Send { transmission: Transmission::Http(Box::new(request)), state: Vec::new() })
    }

    fn refused_smtp(change: impl FnOnce(&mut SmtpSubmission)) -> (GuestFaultKind, String) {
        let mut submission = submission();
        change(&mut submission);
        refused(Step::Send { transmission: Transmission::Smtp(Box::new(submission)), state: Vec::new() })
    }

    fn field((kind, field): (GuestFaultKind, String), expected: GuestFaultKind) -> String {
        assert_eq!(kind, expected, "{field}");
        field
    }

    #[test]
    fn honest_steps_pass() {
        let steps = [
            Step::Send { transmission: Transmission::Http(Box::new(request())), state: vec![0; MAX_STATE] },
            Step::Send { transmission: Transmission::Smtp(Box::new(submission())), state: Vec::new() },
            Step::Wait { ms: 0.0, state: Vec::new() },
            Step::Done(vec![outcome()]),
        ];
        for mut given in steps {
            let before = given.clone();
            assert_eq!(step(&mut given, Outcomes::Exactly(1)), Ok(()));
            assert_eq!(given, before);
        }
    }

    #[test]
    fn a_state_that_is_too_large_is_a_fault_of_its_own() {
        let given = Step::Wait { ms: 1.0, state: vec![0; MAX_STATE + 1] };
        assert_eq!(refused(given), (GuestFaultKind::State, "wait.state".to_owned()));
    }

    #[test]
    fn numbers_must_be_numbers() {
        for ms in [f64::NAN, f64::INFINITY, -1.0] {
            let given = Step::Wait { ms, state: Vec::new() };
            assert_eq!(field(refused(given), GuestFaultKind::InvalidAnswer), "wait.ms");
        }
        let given = Step::Done(vec![Judgement { retry_after_ms: Some(f64::NAN), ..outcome() }]);
        assert_eq!(field(refused(given), GuestFaultKind::InvalidAnswer), "done[0].retry_after_ms");
        for micros in [f64::NAN, -1.0, 1.0e16] {
            assert_eq!(cost("done[0]", micros, "USD".to_owned()).unwrap_err().field, "done[0].cost.micros");
        }
        assert_eq!(cost("outcome", 1.0, "usd".to_owned()).unwrap_err().field, "outcome.cost.currency");
        assert_eq!(cost("outcome", 7900.4, "USD".to_owned()).unwrap().micros, 7900);
    }

    #[test]
    fn every_delivery_has_one_outcome() {
        for count in [0, 2] {
            assert_eq!(field(refused(Step::Done(vec![outcome(); count])), GuestFaultKind::InvalidAnswer), "done");
        }
        assert!(step(&mut Step::Done(Vec::new()), Outcomes::AtMost(3)).is_err());
        assert!(step(&mut Step::Done(vec![outcome(); 3]), Outcomes::AtMost(3)).is_ok());
    }

    #[test]
    fn an_outcomes_words_are_checked_and_its_texts_made_harmless() {
        let given = Step::Done(vec![Judgement { unified_code: "Not a code".to_owned(), ..outcome() }]);
        assert_eq!(field(refused(given), GuestFaultKind::InvalidAnswer), "done[0].unified_code");

        let mut hostile = Judgement {
            code: "é".repeat(MAX_CODE),
            message: "a\0b\r\nc".to_owned(),
            external_id: Some("id\0".to_owned()),
            retry_after_ms: Some(-5.0),
            ..outcome()
        };
        judgement("outcome", &mut hostile).unwrap();
        assert_eq!(hostile.code.len(), MAX_CODE);
        assert_eq!(hostile.message, "a b  c");
        assert_eq!(hostile.external_id, None);
        assert_eq!(hostile.retry_after_ms, Some(0.0));
    }

    #[test]
    fn an_error_cannot_say_accepted() {
        assert_eq!(verdict(&mut outcome()).unwrap_err().field, "outcome.disposition");
    }

    #[test]
    fn only_http_urls_without_credentials_leave() {
        for text in ["", "http://[not a url", "ftp://example.org", "file:///etc/passwd", "https://ann:x@example.org"] {
            let refusal = refused_http(|request| request.url = text.to_owned());
            assert_eq!(field(refusal, GuestFaultKind::InvalidTransmission), "http.url", "{text}");
        }
    }

    #[test]
    fn headers_cannot_inject() {
        let kv = |name: &str, value: &str| Kv { name: name.to_owned(), value: value.to_owned() };
        for header in
            [kv("", "1"), kv("a b", "1"), kv("a:", "1"), kv("a\r\nb", "1"), kv("a", "1\r\nb: 2"), kv("a", "\0")]
        {
            let refusal = refused_http(|request| request.headers = vec![kv("ok", "é\t"), header]);
            assert_eq!(field(refusal, GuestFaultKind::InvalidTransmission), "http.headers[1]");
        }
        let refusal = refused_http(|request| request.headers = vec![kv("a", "1"); MAX_HEADERS + 1]);
        assert_eq!(field(refusal, GuestFaultKind::InvalidTransmission), "http.headers");
    }

    #[test]
    fn the_body_stands_only_in_a_signed_text() {
        let refusal = refused_http(|request| request.body.push(Segment::Body));
        assert_eq!(field(refusal, GuestFaultKind::InvalidAnswer), "http.body[1]");

        let signed = Signature {
            algorithm: SignatureAlgorithm::HmacSha256,
            key: "key".to_owned(),
            key_format: KeyFormat::Raw,
            message: vec![Segment::Body],
            encoding: Encoding::Hex,
            prefix: String::new(),
        };
        let signatures = |header: &str, signatures| Auth::Signatures {
            header: header.to_owned(),
            separator: " ".to_owned(),
            signatures,
        };
        assert_eq!(auth("auth", &signatures("x-signature", vec![signed.clone()])), Ok(()));
        assert_eq!(auth("auth", &signatures("x-signature", Vec::new())).unwrap_err().field, "auth.signatures");
        assert_eq!(auth("auth", &signatures("x y", vec![signed])).unwrap_err().field, "auth.header");
    }

    #[test]
    fn an_envelope_cannot_inject() {
        let unsendable = GuestFaultKind::InvalidTransmission;
        assert_eq!(field(refused_smtp(|given| given.host.clear()), unsendable), "smtp.host");
        assert_eq!(field(refused_smtp(|given| given.port = 0), unsendable), "smtp.port");
        assert_eq!(field(refused_smtp(|given| given.rcpt_to.clear()), unsendable), "smtp.rcpt_to");
        let signed = |domain: &str, selector: &str| {
            let dkim = Dkim { domain: domain.to_owned(), selector: selector.to_owned(), key: "key".to_owned() };
            refused_smtp(|given| given.dkim = Some(dkim))
        };
        assert_eq!(field(signed("example.org; s=x", "s1"), unsendable), "smtp.dkim.domain");
        assert_eq!(field(signed("example.org", "s1\r\nX: y"), unsendable), "smtp.dkim.selector");
        for address in ["", "a@b>\r\nRCPT TO:<c@d", "a\0@b"] {
            let refusal = refused_smtp(|given| given.rcpt_to.push(address.to_owned()));
            assert_eq!(field(refusal, unsendable), "smtp.rcpt_to[1]");
        }
        let refusal = refused_smtp(|given| given.message.message_id = "<a@b>".to_owned());
        assert_eq!(field(refusal, GuestFaultKind::InvalidAnswer), "smtp.message.message_id");
        let refusal = refused_smtp(|given| given.message.date_ms = f64::NAN);
        assert_eq!(field(refusal, GuestFaultKind::InvalidAnswer), "smtp.message.date_ms");
    }
}
