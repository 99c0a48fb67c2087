//! Mail against aiosmtpd, verified by dkimpy: neither was written here. They run in the Python
//! that `ANGARIUM_PEERS_PYTHON` names; without it these tests say so and end.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use angarium::domain::transmission::{Blob, Dkim, FaultKind, Kv, SmtpSubmission, SmtpTls};
use bytes::Bytes;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{
    CANARY, Sender,
    smtp::{mailbox, submission, submit},
    tls::Authority,
};

/// aiosmtpd with STARTTLS or implicit TLS, AUTH for `shop` with the canary as its password. Each
/// mail it takes becomes one JSON file, read by Python's own parser and verified by dkimpy.
const SERVER: &str = r#"
import asyncio, json, os, ssl, sys, email, email.policy
import dkim
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
folder, port, mode, password = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
count = 0

class Handler:
    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        raw = envelope.original_content
        open(f"{folder}/raw-{count}.eml", "wb").write(raw)
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        key = open(f"{folder}/dns.txt", "rb").read() if os.path.exists(f"{folder}/dns.txt") else None
        result = {
            "from": envelope.mail_from, "to": envelope.rcpt_tos, "utf8": envelope.smtp_utf8,
            "authenticated": session.authenticated, "tls": session.ssl is not None or mode == "implicit",
            "headers": [[name, str(value)] for name, value in mail.items()],
            "defects": [str(defect) for part in mail.walk() for defect in part.defects],
            "parts": [[part.get_content_type(), part.get_content_disposition(), part.get_filename(), part["content-id"],
                       None if part.is_multipart() else part.get_payload(decode=True).decode("latin-1")] for part in mail.walk()],
            "dkim": dkim.verify(raw, dnsfunc=lambda name, timeout=5: key) if key else None,
        }
        with open(f"{folder}/tmp", "w") as file:
            json.dump(result, file)
        os.rename(f"{folder}/tmp", f"{folder}/mail-{count}.json")
        return "250 2.0.0 queued"

def authenticate(server, session, envelope, mechanism, data):
    fine = isinstance(data, LoginPassword) and data.login == b"shop" and data.password == password.encode()
    return AuthResult(success=fine, handled=False)

async def main():
    loop = asyncio.get_running_loop()
    context = None
    if mode != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    mechanisms = ["PLAIN"] if mode == "login" else []
    def make():
        return SMTP(Handler(), enable_SMTPUTF8=True, hostname="test", authenticator=authenticate,
                    tls_context=context if mode in ("starttls", "login") else None,
                    auth_require_tls=mode != "implicit", auth_exclude_mechanism=mechanisms)
    server = await loop.create_server(make, "127.0.0.1", port, ssl=context if mode == "implicit" else None)
    await server.serve_forever()

asyncio.run(main())
"#;

struct Server {
    process: Child,
    folder: PathBuf,
    port: u16,
    authority: Authority,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// `None` where the peers are not installed.
    async fn start(mode: &str) -> Option<Self> {
        let Ok(python) = std::env::var("ANGARIUM_PEERS_PYTHON") else {
            eprintln!("not run: ANGARIUM_PEERS_PYTHON does not name a Python with aiosmtpd and dkimpy");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("angarium-smtp-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let authority = Authority::new();
        let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
        std::fs::write(folder.join("cert.pem"), certificate).unwrap();
        std::fs::write(folder.join("key.pem"), key).unwrap();
        let process = Command::new(python)
            .args(["-W", "ignore", "-c", SERVER])
            .arg(&folder)
            .args([&port.to_string(), mode, CANARY])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, folder, port, authority };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("aiosmtpd did not start");
    }

    fn sender(&self) -> Sender {
        Sender::with(self.authority.trusted())
    }

    /// The mails that were taken, in order.
    fn mails(&self) -> Vec<Value> {
        (1..)
            .map_while(|number| std::fs::read(self.folder.join(format!("mail-{number}.json"))).ok())
            .map(|bytes| serde_json::from_slice(&bytes).unwrap())
            .collect()
    }

    fn raw(&self, number: usize) -> String {
        String::from_utf8(std::fs::read(self.folder.join(format!("raw-{number}.eml"))).unwrap()).unwrap()
    }

    fn mail(&self, tls: SmtpTls) -> SmtpSubmission {
        SmtpSubmission {
            tls,
            user: Some("shop".to_owned()),
            password: Some("canary".to_owned()),
            ..submission(self.port)
        }
    }
}

fn header<'a>(mail: &'a Value, name: &str) -> Vec<&'a str> {
    let all = mail["headers"].as_array().unwrap();
    all.iter()
        .filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name))
        .map(|pair| pair[1].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn starttls_and_implicit_tls_carry_credentials() {
    for (mode, tls) in [
        ("starttls", SmtpTls::Starttls),
        ("starttls", SmtpTls::Opportunistic),
        ("login", SmtpTls::Starttls),
        ("implicit", SmtpTls::Implicit),
    ] {
        let Some(server) = Server::start(mode).await else { return };
        let reply = submit(&server.sender(), server.mail(tls)).await.unwrap();
        assert_eq!(reply.status(), 250, "{mode}");
        let mails = server.mails();
        assert_eq!(mails.len(), 1);
        assert_eq!((&mails[0]["tls"], &mails[0]["authenticated"]), (&true.into(), &true.into()), "{mode}");
        assert_eq!(mails[0]["to"], serde_json::json!(["ann@example.org"]));

        let stranger = submit(&Sender::new(), server.mail(tls)).await.unwrap_err();
        assert_eq!((stranger.kind, stranger.may_have_been_sent), (FaultKind::Tls, false), "{mode}");
        let wrong = server.sender().secret("wrong", "not the password");
        let mail = SmtpSubmission { password: Some("wrong".to_owned()), ..server.mail(tls) };
        let fault = submit(&wrong, mail).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Unauthorized, false), "{mode}");
    }
}

#[tokio::test]
async fn a_full_mail_is_read_as_it_was_written() {
    let Some(server) = Server::start("none").await else { return };
    let mut sender = server.sender();
    let blob = |id, name: &str, media_type: &str, content_id: Option<&str>, bytes: &'static [u8]| Blob {
        id,
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        content_id: content_id.map(str::to_owned),
        bytes: Bytes::from_static(bytes),
    };
    sender.blobs = vec![
        blob(1, "räkning.pdf", "application/pdf", None, &[0, 159, 146, 150]),
        blob(2, "logo.png", "image/png", Some("logo@shop"), b"PNG"),
    ];
    let mut mail = submission(server.port);
    let message = &mut mail.message;
    message.sender.name = Some("Blåbär \"Shop\", Ltd".to_owned());
    message.reply_to = vec![mailbox("help@example.org")];
    message.cc = vec![mailbox("bo@example.org"), mailbox("cy@bücher.example")];
    message.subject = "Välkommen, din räkning är här och ämnesraden är längre än en rad i ett brev får vara".to_owned();
    message.text = Some("Hej Å\n.\n..\nFrom me\n".to_owned());
    message.html = Some("<p>Hej <img src=\"cid:logo@shop\"></p>".to_owned());
    message.headers = vec![
        Kv { name: "List-Unsubscribe".to_owned(), value: format!("<https://example.org/{}>", "u".repeat(100)) },
        Kv { name: "List-Unsubscribe-Post".to_owned(), value: "List-Unsubscribe=One-Click".to_owned() },
    ];
    message.blobs = vec![1, 2];
    mail.rcpt_to =
        ["ann@example.org", "bo@example.org", "cy@bücher.example", "hidden@example.org"].map(str::to_owned).to_vec();
    submit(&sender, mail.clone()).await.unwrap();

    let seen = &server.mails()[0];
    assert_eq!(seen["defects"], serde_json::json!([]));
    assert_eq!(seen["to"][2], "cy@xn--bcher-kva.example");
    assert_eq!(seen["to"][3], "hidden@example.org");
    assert_eq!(header(seen, "subject"), [mail.message.subject.as_str()]);
    assert_eq!(header(seen, "from"), ["\"Blåbär \\\"Shop\\\", Ltd\" <shop@example.org>"]);
    assert_eq!(header(seen, "message-id"), ["<dlv_1@example.org>"]);
    assert_eq!(header(seen, "list-unsubscribe"), [mail.message.headers[0].value.as_str()]);
    assert!(header(seen, "bcc").is_empty());
    let parts = seen["parts"].as_array().unwrap();
    let kinds: Vec<_> = parts.iter().map(|part| part[0].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "multipart/mixed",
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "image/png",
            "application/pdf"
        ]
    );
    assert_eq!(parts[2][4], "Hej Ã\u{85}\r\n.\r\n..\r\nFrom me\r\n");
    assert_eq!((&parts[5][1], &parts[5][3]), (&"inline".into(), &"<logo@shop>".into()));
    assert_eq!((&parts[6][1], &parts[6][2]), (&"attachment".into(), &"räkning.pdf".into()));
    assert_eq!(parts[6][4], "\u{0}\u{9f}\u{92}\u{96}");
}

#[tokio::test]
async fn smuggling_bodies_and_subjects_yield_one_mail() {
    let Some(server) = Server::start("none").await else { return };
    let sender = server.sender();
    let smuggled = "MAIL FROM:<evil@example.org>";
    let bodies =
        ["\n.\n", "\r.\r", "\n.\r\n", "\r\n.\r\n", "\r\n.\n", "\r.\n"].map(|end| format!("a{end}{smuggled}{end}"));
    for body in &bodies {
        let mut mail = submission(server.port);
        mail.message.text = Some(body.clone());
        mail.message.html = Some(body.clone());
        mail.message.subject = "x\r\nBcc: v@example.org".to_owned();
        submit(&sender, mail).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mails = server.mails();
    assert_eq!(mails.len(), bodies.len());
    for mail in &mails {
        assert_eq!(mail["to"], serde_json::json!(["ann@example.org"]));
        assert!(header(mail, "bcc").is_empty());
        assert_eq!(mail["parts"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn international_addresses_use_smtputf8() {
    let Some(server) = Server::start("none").await else { return };
    let mut mail = submission(server.port);
    mail.rcpt_to = vec!["jürgen@example.org".to_owned()];
    mail.message.to = vec![mailbox("jürgen@example.org")];
    submit(&server.sender(), mail).await.unwrap();
    submit(&server.sender(), submission(server.port)).await.unwrap();
    let mails = server.mails();
    assert_eq!((&mails[0]["utf8"], &mails[0]["to"][0]), (&true.into(), &"jürgen@example.org".into()));
    assert_eq!(mails[1]["utf8"], false);
}

#[tokio::test]
async fn dkim_signatures_verify_elsewhere() {
    let Some(server) = Server::start("none").await else { return };
    let openssl = |args: &[&str], input: &str| {
        use std::io::Write;
        let mut child = Command::new("openssl")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let rsa = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "");
    let old_rsa = openssl(&["rsa", "-traditional"], &rsa);
    assert!(old_rsa.contains("BEGIN RSA PRIVATE KEY"));
    let ed25519 = openssl(&["genpkey", "-algorithm", "ED25519"], "");
    for (number, (kind, key)) in [("rsa", rsa), ("rsa", old_rsa), ("ed25519", ed25519)].into_iter().enumerate() {
        let public: String =
            openssl(&["pkey", "-pubout"], &key).lines().filter(|line| !line.starts_with("---")).collect();
        // An Ed25519 key stands bare in DNS (RFC 8463): the last 32 bytes of its DER form.
        let record = if kind == "ed25519" { public[16..].to_owned() } else { public };
        std::fs::write(server.folder.join("dns.txt"), format!("v=DKIM1; k={kind}; p={record}")).unwrap();
        let mut mail = submission(server.port);
        mail.message.subject = "Välkommen".to_owned();
        mail.message.headers =
            vec![Kv { name: "List-Unsubscribe".to_owned(), value: "<https://example.org/u>".to_owned() }];
        mail.dkim =
            Some(Dkim { domain: "example.org".to_owned(), selector: "s1".to_owned(), key: format!("key{number}") });
        submit(&server.sender().secret(&format!("key{number}"), &key), mail).await.unwrap();
        let mails = server.mails();
        assert_eq!(mails[number]["dkim"], true, "{kind}\n{}", server.raw(number + 1));
        let signature = header(&mails[number], "dkim-signature")[0].replace(' ', "").to_ascii_lowercase();
        for covered in
            ["from", "to", "subject", "date", "message-id", "mime-version", "content-type", "list-unsubscribe"]
        {
            assert!(signature.split("h=").nth(1).unwrap().contains(covered), "{covered}: {signature}");
        }
        assert!(signature.contains("c=relaxed/relaxed"), "{signature}");
    }
}
