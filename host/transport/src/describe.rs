//! Shows a transmission for dry runs. No secret's value is read: its place shows `***`.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    fault::invalid,
    mime,
    splice::{Material, Secrets},
};
use angarium_domain::transmission::{Auth, Blob, Fault, HttpRequest, Segment, SmtpSubmission, Transmission};

const HIDDEN: &str = "***";

/// The request, or the envelope and the mail, as they would leave. Attachments stand by name and
/// size.
///
/// # Errors
/// When the transmission can't be performed as it is (a malformed address, a missing attachment).
pub fn describe(transmission: &Transmission, blobs: &[Blob]) -> Result<Value, Fault> {
    match transmission {
        Transmission::Http(request) => http(request, blobs),
        Transmission::Smtp(mail) => smtp(mail, blobs),
    }
}

fn http(request: &HttpRequest, blobs: &[Blob]) -> Result<Value, Fault> {
    let mut url = request.url.clone();
    let mut headers: Vec<Value> = request.headers.iter().map(|header| named(&header.name, &header.value)).collect();
    let mut certificate = None;
    for auth in &request.auth {
        match auth {
            Auth::Basic { .. } => headers.push(named("authorization", "Basic ***")),
            Auth::Bearer { .. } | Auth::OAuth2 { .. } => headers.push(named("authorization", "Bearer ***")),
            Auth::Header { name, .. } => headers.push(named(name, HIDDEN)),
            Auth::Query { name, .. } => {
                url.push(if url.contains('?') { '&' } else { '?' });
                url.push_str(&format!("{name}={HIDDEN}"));
            }
            Auth::AwsSigV4 { region, service, .. } => {
                headers.push(named("authorization", &format!("AWS4-HMAC-SHA256 *** ({region}/{service})")));
            }
            Auth::Signatures { header, separator, signatures } => {
                let values: Vec<_> =
                    signatures.iter().map(|signature| format!("{}{HIDDEN}", signature.prefix)).collect();
                headers.push(named(header, &values.join(separator)));
            }
            Auth::ClientCertificate { secret } => certificate = Some(secret),
        }
    }
    let mut shown = json!({ "kind": "http", "method": request.method, "url": url, "headers": headers });
    match String::from_utf8(body(&request.body, blobs)?) {
        Ok(text) => shown["body"] = text.into(),
        Err(bytes) => shown["body_base64"] = STANDARD.encode(bytes.into_bytes()).into(),
    }
    if let Some(name) = certificate {
        shown["client_certificate"] = json!(format!("the secret `{name}`"));
    }
    Ok(shown)
}

fn smtp(mail: &SmtpSubmission, blobs: &[Blob]) -> Result<Value, Fault> {
    let secrets = Secrets::default();
    let material = Material { secrets: &secrets, blobs };
    let recipients = mail.rcpt_to.iter().map(|to| mime::mailbox(to)).collect::<Result<Vec<_>, _>>()?;
    let written = mime::write(&mail.message, material)?;
    let attachments = mail.message.blobs.iter().map(|id| material.blob(*id).map(attachment));
    Ok(json!({
        "kind": "smtp",
        "host": mail.host,
        "port": mail.port,
        "tls": mail.tls,
        "user": mail.user,
        "password": mail.password.as_ref().map(|_| HIDDEN),
        "mail_from": mail.mail_from,
        "rcpt_to": recipients,
        "headers": header_lines(&written),
        "text": mail.message.text,
        "html": mail.message.html,
        "attachments": attachments.collect::<Result<Vec<_>, _>>()?,
        "dkim": mail.dkim.as_ref().map(|dkim| json!({ "domain": dkim.domain, "selector": dkim.selector })),
    }))
}

fn named(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn attachment(blob: &Blob) -> Value {
    json!({
        "name": blob.name,
        "media_type": blob.media_type,
        "size": blob.bytes.len(),
        "content_id": blob.content_id,
    })
}

fn body(segments: &[Segment], blobs: &[Blob]) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    for segment in segments {
        match segment {
            Segment::Text(text) => out.extend_from_slice(text.as_bytes()),
            Segment::Bytes(bytes) => out.extend_from_slice(bytes),
            Segment::Secret { .. } => out.extend_from_slice(HIDDEN.as_bytes()),
            Segment::Blob { id, .. } => {
                let blob = blobs.iter().find(|blob| blob.id == *id);
                let blob = blob.ok_or_else(|| invalid(format!("there is no attachment {id}")))?;
                out.extend_from_slice(format!("<{}: {} bytes>", blob.name, blob.bytes.len()).as_bytes());
            }
            Segment::Body => return Err(invalid("a body can't contain itself")),
        }
    }
    Ok(out)
}

/// The header block, with folded lines joined.
fn header_lines(mail: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(mail);
    let block = text.split("\r\n\r\n").next().unwrap_or_default();
    let unfolded = block.replace("\r\n ", " ").replace("\r\n\t", " ");
    unfolded.split("\r\n").filter_map(|line| line.split_once(": ")).map(|(name, value)| named(name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::transmission::{
        Encoding, KeyFormat, Kv, Mail, Mailbox, Method, Signature, SignatureAlgorithm, SmtpTimeouts, SmtpTls,
    };

    #[test]
    fn a_request_shows_everything_but_secrets() {
        let request = HttpRequest {
            method: Method::Post,
            url: "https://example.org/in".to_owned(),
            headers: vec![Kv { name: "webhook-id".to_owned(), value: "dlv_1".to_owned() }],
            body: vec![
                Segment::Text("{\"key\":\"".to_owned()),
                Segment::Secret { name: "key".to_owned(), encoding: Encoding::JsonString },
                Segment::Text("\"}".to_owned()),
            ],
            auth: vec![
                Auth::Query { name: "token".to_owned(), secret: "key".to_owned() },
                Auth::Signatures {
                    header: "webhook-signature".to_owned(),
                    separator: " ".to_owned(),
                    signatures: vec![Signature {
                        algorithm: SignatureAlgorithm::HmacSha256,
                        key: "key".to_owned(),
                        key_format: KeyFormat::Raw,
                        message: vec![Segment::Body],
                        encoding: Encoding::Base64,
                        prefix: "v1,".to_owned(),
                    }],
                },
            ],
            timeout_ms: None,
        };
        let shown = describe(&Transmission::Http(Box::new(request)), &[]).unwrap();
        assert_eq!(
            shown,
            json!({
                "kind": "http",
                "method": "POST",
                "url": "https://example.org/in?token=***",
                "headers": [
                    { "name": "webhook-id", "value": "dlv_1" },
                    { "name": "webhook-signature", "value": "v1,***" },
                ],
                "body": "{\"key\":\"***\"}",
            })
        );
    }

    #[test]
    fn a_mail_shows_its_envelope_and_headers() {
        let mailbox = |value: &str| Mailbox { value: value.to_owned(), name: None };
        let mail = SmtpSubmission {
            host: "mail.example.org".to_owned(),
            port: 587,
            tls: SmtpTls::Starttls,
            user: Some("shop".to_owned()),
            password: Some("password".to_owned()),
            client_name: String::new(),
            mail_from: "shop@example.org".to_owned(),
            rcpt_to: vec!["ann@example.org".to_owned()],
            message: Mail {
                sender: mailbox("shop@example.org"),
                reply_to: vec![],
                to: vec![mailbox("ann@example.org")],
                cc: vec![],
                subject: "Blåbär".to_owned(),
                message_id: "dlv_1@example.org".to_owned(),
                date_ms: 0.0,
                text: Some("Hi".to_owned()),
                html: None,
                headers: vec![],
                blobs: vec![],
            },
            dkim: None,
            timeouts: SmtpTimeouts::default(),
        };
        let shown = describe(&Transmission::Smtp(Box::new(mail)), &[]).unwrap();
        assert_eq!(shown["password"], "***");
        assert_eq!(shown["tls"], "starttls");
        let headers = shown["headers"].as_array().unwrap();
        assert!(headers.contains(&json!({ "name": "Subject", "value": "=?utf-8?B?QmzDpWLDpHI=?=" })), "{shown}");
    }
}
