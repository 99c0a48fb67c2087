//! TLS: the authorities that the transport trusts, and the proof of its own identity.

use std::sync::Arc;

use angarium_domain::transmission::FaultKind;
use angarium_transport::TransportSettings;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use super::{Auth, Sender, ok, read_request, serve, settings};
use crate::support::authority::Authority;

/// Settings of a transport that trusts an authority.
pub(super) fn trusting(authority: &Authority) -> TransportSettings {
    TransportSettings { extra_ca_pem: Some(authority.pem().into_bytes()), ..settings() }
}

/// An acceptor that speaks these protocols.
pub(super) fn acceptor_for(authority: &Authority, protocols: &[&[u8]]) -> TlsAcceptor {
    let mut config = server_config(authority, false);
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

pub(super) fn acceptor(authority: &Authority, ask_for_certificate: bool) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server_config(authority, ask_for_certificate)))
}

fn server_config(authority: &Authority, ask_for_certificate: bool) -> ServerConfig {
    let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if ask_for_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap(),
        )
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    builder.with_single_cert(chain, key).unwrap()
}

/// An HTTPS server's port.
async fn https(acceptor: TlsAcceptor) -> u16 {
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(ok("secure").as_bytes()).await;
            }
        }
    })
    .await;
    address.port()
}

#[tokio::test]
async fn an_unknown_authority_is_refused_before_anything_is_sent() {
    let port = https(acceptor(&Authority::new(), false)).await;
    assert_eq!(Sender::new().fault(&format!("https://127.0.0.1:{port}/")).await, (FaultKind::Tls, false));
}

#[tokio::test]
async fn the_operators_authority_is_trusted() {
    let authority = Authority::new();
    let port = https(acceptor(&authority, false)).await;
    let sender = Sender::with(trusting(&authority));
    let reply = sender.post(&format!("https://127.0.0.1:{port}/"), vec![]).await.unwrap();
    assert_eq!(reply.status(), 200);
    let stranger = Sender::with(trusting(&Authority::new()));
    assert_eq!(stranger.fault(&format!("https://127.0.0.1:{port}/")).await, (FaultKind::Tls, false));
}

#[tokio::test]
async fn a_plain_server_is_no_tls_server() {
    let (address, _) = super::answering(|_| ok("")).await;
    let fault = Sender::new().within(std::time::Duration::from_secs(1)).fault(&format!("https://{address}/")).await;
    assert!(!fault.1, "{fault:?}");
}

#[tokio::test]
async fn a_client_certificate_opens_the_door() {
    let authority = Authority::new();
    let port = https(acceptor(&authority, true)).await;
    let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let sender =
        Sender::with(trusting(&authority)).secret("identity", &format!("{certificate}{key}")).secret("not", "PEM");
    let url = format!("https://127.0.0.1:{port}/");
    let with = |name: &str| vec![Auth::ClientCertificate { secret: name.to_owned() }];
    for _ in 0..2 {
        assert_eq!(sender.post(&url, with("identity")).await.unwrap().status(), 200);
    }
    assert!(sender.post(&url, vec![]).await.is_err());
    let fault = sender.post(&url, with("not")).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidTransmission);
}

#[test]
fn a_bad_authority_file_is_named() {
    let settings = TransportSettings { extra_ca_pem: Some(b"nonsense".to_vec()), ..TransportSettings::default() };
    let Err(error) = angarium_transport::Transport::new(settings) else { panic!("nonsense was taken") };
    assert!(error.to_string().contains("BEGIN CERTIFICATE"), "{error}");
}
