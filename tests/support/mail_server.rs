//! aiosmtpd, with Python's `email` package as the reader and dkimpy as the verifier of its mails.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;
use tempfile::TempDir;
use xtask::lifeline::Lifeline;

use super::{authority::Authority, peer};

/// The server. Its certificate is its own authority's; `shop` may sign in over TLS.
pub struct MailServer {
    pub port: u16,
    pub authority: Authority,
    folder: TempDir,
    _process: Lifeline,
}

impl MailServer {
    /// `smtp_server.py` explains the mode. `None` if the peers are not installed.
    pub async fn start(mode: &str, password: &str) -> Option<Self> {
        let python = peer::python()?;
        let (port, folder, authority) = (peer::free_port(), tempfile::tempdir().unwrap(), Authority::new());
        let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
        for (name, text) in [("cert.pem", &certificate), ("key.pem", &key), ("ca.pem", &authority.pem())] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut command = Command::new(python);
        command.args(["-W", "ignore"]).arg(peer::script("smtp_server.py")).arg(folder.path());
        command.args([&port.to_string(), mode, password]);
        let process = peer::start(command, port, &folder.path().join("log")).await;
        Some(Self { port, authority, folder, _process: process })
    }

    /// PEM of the authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Every mail that came, refused ones too, in order.
    pub fn mails(&self) -> Vec<Value> {
        (1..)
            .map_while(|number| std::fs::read(self.folder.path().join(format!("mail-{number}.json"))).ok())
            .map(|bytes| serde_json::from_slice(&bytes).unwrap())
            .collect()
    }

    /// A mail as it came; the first is 1.
    pub fn raw(&self, number: usize) -> String {
        String::from_utf8(std::fs::read(self.folder.path().join(format!("raw-{number}.eml"))).unwrap()).unwrap()
    }

    /// Sets the answers to the next mails; `hang up` is no answer at all.
    pub fn answers(&self, answers: &[&str]) {
        std::fs::write(self.folder.path().join("answers"), answers.join("\n")).unwrap();
    }

    /// Sets the record that dkimpy finds when it asks for the key.
    pub fn publish(&self, record: &str) {
        std::fs::write(self.folder.path().join("dns.txt"), record).unwrap();
    }
}

/// The values of a header.
pub fn header<'a>(mail: &'a Value, name: &str) -> Vec<&'a str> {
    let all = mail["headers"].as_array().unwrap();
    all.iter()
        .filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name))
        .map(|pair| pair[1].as_str().unwrap())
        .collect()
}

/// A key pair for DKIM.
pub struct DkimKey {
    pub pem: String,
    /// The record that its owner publishes.
    pub record: String,
}

impl DkimKey {
    /// A key of 2048 bits, PKCS#8.
    pub fn rsa() -> Self {
        Self::of("rsa", openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], ""))
    }

    /// The same key in PKCS#1.
    pub fn traditional(&self) -> Self {
        let pem = openssl(&["rsa", "-traditional"], &self.pem);
        assert!(pem.contains("BEGIN RSA PRIVATE KEY"), "{pem}");
        Self { pem, record: self.record.clone() }
    }

    pub fn ed25519() -> Self {
        Self::of("ed25519", openssl(&["genpkey", "-algorithm", "ED25519"], ""))
    }

    fn of(kind: &str, pem: String) -> Self {
        let public = openssl(&["pkey", "-pubout"], &pem);
        let public: String = public.lines().filter(|line| !line.starts_with("---")).collect();
        // DNS has an Ed25519 key bare (RFC 8463): the last 32 bytes of its DER form.
        let public = if kind == "ed25519" { &public[16..] } else { &public };
        Self { pem, record: format!("v=DKIM1; k={kind}; p={public}") }
    }
}

fn openssl(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
