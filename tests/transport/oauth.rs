//! Access tokens: fetched once, renewed when refused, and never a reason to think that a
//! delivery was sent.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use angarium_domain::transmission::{FaultKind, OAuth2Grant};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::{Auth, CANARY, Sender, answering, ok};

fn auth(grant: OAuth2Grant, token_url: String, credential: &str) -> Auth {
    Auth::OAuth2 {
        grant,
        token_url,
        scopes: vec!["send".to_owned(), "read".to_owned()],
        client_id: "the client".to_owned(),
        credential: credential.to_owned(),
    }
}

static FETCHED: AtomicUsize = AtomicUsize::new(0);

#[tokio::test]
async fn a_token_is_fetched_once_and_again_after_a_401() {
    let (tokens, mut asked) = answering(|_| {
        let number = FETCHED.fetch_add(1, Ordering::Relaxed) + 1;
        ok(&json!({"access_token": format!("token-number-{number}"), "expires_in": 3600, "token_type": "Bearer"})
            .to_string())
    })
    .await;
    let (api, mut called) = answering(|request| {
        let spoilt = request.contains("/spoilt");
        if spoilt { "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned() } else { ok("") }
    })
    .await;
    let sender = Sender::new();
    let auth = || vec![auth(OAuth2Grant::ClientCredentials, format!("http://{tokens}/token"), "canary")];
    for path in ["a", "b", "spoilt", "c"] {
        sender.post(&format!("http://{api}/{path}"), auth()).await.unwrap();
    }
    for number in [1, 1, 1, 2] {
        let request = called.recv().await.unwrap();
        assert!(request.contains(&format!("authorization: Bearer token-number-{number}\r\n")), "{request}");
    }
    let request = asked.recv().await.unwrap();
    assert!(request.ends_with("grant_type=client_credentials&scope=send+read"), "{request}");
    // "the+client:canary-7f3e9a", as RFC 6749 encodes it.
    assert!(request.contains("authorization: Basic dGhlK2NsaWVudDpjYW5hcnktN2YzZTlh\r\n"), "{request}");
    assert!(asked.recv().await.is_some() && asked.try_recv().is_err());
}

#[tokio::test]
async fn a_refresh_token_is_a_form() {
    let (tokens, mut asked) = answering(|_| ok(r#"{"access_token":"short-lived"}"#)).await;
    let (api, _) = answering(|_| ok("")).await;
    let auth = vec![auth(OAuth2Grant::RefreshToken, format!("http://{tokens}/token"), "canary")];
    Sender::new().post(&format!("http://{api}/"), auth).await.unwrap();
    let request = asked.recv().await.unwrap();
    let form = format!("grant_type=refresh_token&refresh_token={CANARY}&client_id=the+client&scope=send+read");
    assert!(request.ends_with(&form), "{request}");
}

#[tokio::test]
async fn without_a_token_nothing_was_sent() {
    let (api, mut called) = answering(|_| ok("")).await;
    let answers = [
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", FaultKind::Unauthorized),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", FaultKind::UnreadableAnswer),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", FaultKind::UnreadableAnswer),
        ("not HTTP\r\n\r\n", FaultKind::UnreadableAnswer),
    ];
    for (answer, kind) in answers {
        let (tokens, _) = answering(move |_| answer.to_owned()).await;
        let auth = vec![auth(OAuth2Grant::ClientCredentials, format!("http://{tokens}/token"), "canary")];
        let fault = Sender::new().post(&format!("http://{api}/"), auth).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (kind, false), "{answer}");
    }
    let elsewhere = auth(OAuth2Grant::ClientCredentials, "http://tokens.invalid/".to_owned(), "canary");
    let fault = Sender::new().post(&format!("http://{api}/"), vec![elsewhere]).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::EgressRefused);
    assert!(called.try_recv().is_err());
}

/// RFC 7523, with a key made by OpenSSL and the signature verified by it.
#[tokio::test]
async fn a_service_account_signs_an_assertion() {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    let pem = String::from_utf8(made.stdout).unwrap();
    let account = json!({"client_email": "bot@example.org", "private_key": pem, "private_key_id": "k1"}).to_string();
    let (tokens, mut asked) = answering(|_| ok(r#"{"access_token":"short-lived"}"#)).await;
    let (api, _) = answering(|_| ok("")).await;
    let auth = vec![auth(OAuth2Grant::ServiceAccountJwt, format!("http://{tokens}/token"), "account")];
    Sender::new().secret("account", &account).post(&format!("http://{api}/"), auth).await.unwrap();
    let request = asked.recv().await.unwrap();
    let form = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
    let jwt = request.split(form).nth(1).unwrap_or_else(|| panic!("{request}"));
    let (text, signature) = jwt.rsplit_once('.').unwrap();
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&decoded(text.split_once('.').unwrap().1)).unwrap();
    assert_eq!(claims["iss"], "bot@example.org");
    assert_eq!(claims["aud"], format!("http://{tokens}/token"));
    assert_eq!(claims["scope"], "send read");
    assert_eq!(claims["iat"], 1_767_323_045);
    let folder = std::env::temp_dir().join(format!("angarium-jwt-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in [("key", pem.as_bytes()), ("text", text.as_bytes()), ("signature", &decoded(signature))] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let verify = ["dgst", "-sha256", "-prverify", "key", "-signature", "signature", "text"];
    let verified = Command::new("openssl").args(verify).current_dir(&folder).status().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(verified.success());
}
