//! Mail through a gateway to Postfix, in the test's own instance that discards its mails.

use std::{
    fmt::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::{lifeline::Lifeline, machine};

use super::mail::{SMUGGLES, smuggling};
use crate::support::{authority::Authority, database::eventually, gateway::TestGateway, peer};

/// The services that take a mail and throw it away, without chroot (the fifth column).
const SERVICES: &str = "\
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
discard unix - - n - - discard
error unix - - n - - error
retry unix - - n - - error
";

/// The master makes a session of its own, which the leader of a process group may not: it is a shell's child,
/// and the shell hands its end on.
const AS_A_CHILD: &str = r#"trap 'kill "$child"' TERM; "$@" & child=$!; wait "$child"; wait "$child""#;

struct Postfix {
    port: u16,
    folder: TempDir,
    _process: Lifeline,
}

impl Postfix {
    /// `None` if it cannot run: it needs root, because each of its parts runs as another user.
    async fn start() -> Option<Self> {
        let program = machine::program("postfix").or_else(|| Some(PathBuf::from("/usr/sbin/postfix")))?;
        if !program.exists() || machine::user_id().ok()? != 0 {
            eprintln!("NOT RUN: Postfix is not installed, or this is not root, which it needs");
            return None;
        }
        let (port, folder) = (peer::free_port(), tempfile::tempdir().unwrap());
        write_instance(folder.path(), port);
        let etc = folder.path().join("etc");
        // `postfix start` would leave its master behind a shell; `check` creates the master's files.
        assert!(Command::new(program).arg("-c").arg(&etc).arg("check").status().unwrap().success());
        let asked = Command::new("postconf").arg("-c").arg(&etc).args(["-h", "daemon_directory"]).output().unwrap();
        let daemons = PathBuf::from(String::from_utf8(asked.stdout).unwrap().trim());
        let mut command = Command::new("sh");
        command.args(["-c", AS_A_CHILD, "postfix"]).arg(daemons.join("master")).args(["-s", "-c"]).arg(&etc);
        command.env("MAIL_CONFIG", &etc);
        let process = peer::start(command, port, &folder.path().join("output")).await;
        Some(Self { port, folder, _process: process })
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("mail.log")).unwrap_or_default()
    }

    /// The lines about the mail of this Message-ID, once it was thrown away.
    async fn discarded(&self, message_id: &str) -> Vec<String> {
        eventually(&format!("Postfix's last word on {message_id}"), || async {
            let log = self.log();
            let first = log.lines().find(|line| line.contains(&format!("message-id=<{message_id}>")))?;
            let queue_id = first.split(": ").nth(1)?.to_owned();
            let lines = log.lines().filter(|line| line.contains(&format!(" {queue_id}: ")));
            let lines: Vec<_> = lines.map(str::to_owned).collect();
            lines.iter().any(|line| line.ends_with(": removed")).then_some(lines)
        })
        .await
    }
}

fn write_instance(folder: &Path, port: u16) {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
    // Its parts, which run as another user, come here by this path.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["etc", "spool", "data"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let (user, group) = machine::account("postfix").expect("the package makes the account");
    std::os::unix::fs::chown(folder.join("data"), Some(user), Some(group)).unwrap();
    let place = folder.display();
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {place}/spool\ndata_directory = {place}/data\n\
         maillog_file = {place}/mail.log\nmaillog_file_prefixes = {place}\n\
         inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmyhostname = postfix.test\n\
         mydestination =\nlocal_recipient_maps =\nalias_maps =\n\
         default_transport = discard\nlocal_transport = discard\n\
         smtpd_relay_restrictions = permit_mynetworks, reject\n\
         smtpd_recipient_restrictions = check_recipient_access inline:{{\n\
         \x20 {{gone@example.org = 550 5.1.1 no such user}}, {{later@example.org = 450 4.2.0 greylisted}}}}\n\
         smtpd_tls_security_level = encrypt\nsmtpd_tls_loglevel = 1\n\
         smtpd_tls_cert_file = {place}/cert.pem\nsmtpd_tls_key_file = {place}/key.pem\n"
    );
    let mut services = SERVICES.to_owned();
    writeln!(services, "127.0.0.1:{port} inet n - n - - smtpd").unwrap();
    for (name, text) in [
        ("etc/main.cf", main.as_str()),
        ("etc/master.cf", &services),
        ("cert.pem", &certificate),
        ("key.pem", &key),
        ("ca.pem", &authority.pem()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

async fn gateway_for(postfix: &Postfix) -> TestGateway {
    let gateway = TestGateway::with(1, &format!("[tls]\nca_file = {}\n", json!(postfix.ca_file()))).await;
    let config = json!({"host": "127.0.0.1", "port": postfix.port, "tls": "starttls", "from": "shop@example.org"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let spec = json!({"candidates": [{"connection": "mail"}], "retry": {"type": "none"}});
    gateway.route("email", spec).await;
    gateway
}

fn mail(to: &str, content: Value) -> Value {
    json!({"channel": "email", "to": to, "content": content})
}

#[tokio::test]
async fn postfix_takes_mail_over_starttls() {
    let Some(postfix) = Postfix::start().await else { return };
    let gateway = gateway_for(&postfix).await;
    let content = json!({"subject": "Välkommen", "text": "Hej", "html": "<p>Hej</p>", "bcc": ["hidden@example.org"]});
    for to in ["ann@example.org", "jürgen@example.org"] {
        let view = gateway.settled(&gateway.send(&mail(to, content.clone())).await).await;
        assert_eq!(view.state, "sent", "{view}\n{}", postfix.log());
        let lines = postfix.discarded(view["delivery"]["external_id"].as_str().unwrap()).await;
        for recipient in [to, "hidden@example.org"] {
            let sent =
                lines.iter().any(|line| line.contains(&format!("to=<{recipient}>")) && line.contains("status=sent"));
            assert!(sent, "{recipient}: {lines:?}");
        }
    }
    assert!(postfix.log().contains("TLS connection established"), "{}", postfix.log());
}

#[tokio::test]
async fn postfix_s_refusals_are_understood() {
    let Some(postfix) = Postfix::start().await else { return };
    let gateway = gateway_for(&postfix).await;
    for (to, disposition, code, unified) in [
        ("gone@example.org", "rejected_permanent", "550 5.1.1", "invalid_recipient"),
        ("later@example.org", "rejected_transient", "450 4.2.0", "provider_error"),
    ] {
        let id = gateway.send(&mail(to, json!({"text": "x"}))).await;
        gateway.settled(&id).await;
        let attempt = gateway.attempt_list(&id).await.remove(0);
        let said = [&attempt["disposition"], &attempt["code"], &attempt["unified_code"]];
        assert_eq!(said, [disposition, code, unified], "{attempt}");
    }
    assert!(!postfix.log().contains("(queue active)"), "{}", postfix.log());
}

#[tokio::test]
async fn postfix_sees_one_mail_where_one_was_sent() {
    let Some(postfix) = Postfix::start().await else { return };
    let gateway = gateway_for(&postfix).await;
    for end in SMUGGLES {
        let content = json!({"text": smuggling(end), "html": smuggling(end)});
        let view = gateway.settled(&gateway.send(&mail("ann@example.org", content)).await).await;
        assert_eq!(view.state, "sent", "{view}");
        postfix.discarded(view["delivery"]["external_id"].as_str().unwrap()).await;
    }
    let log = postfix.log();
    assert_eq!(log.matches("(queue active)").count(), SMUGGLES.len(), "{log}");
    assert!(!log.contains("evil@example.org") && !log.contains("victim@example.org"), "{log}");
}
