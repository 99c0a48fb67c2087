//! The trusted certificate authorities: Mozilla's roots, and the operator's own.

use std::sync::Arc;

use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

/// The certificate authorities that servers are checked against.
#[derive(Clone)]
pub(super) struct TlsRoots(Arc<RootCertStore>);

impl TlsRoots {
    /// Mozilla's roots and those in a PEM text.
    pub(super) fn new(extra_pem: Option<&[u8]>) -> Result<Self, String> {
        let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for certificate in CertificateDer::pem_slice_iter(extra_pem.unwrap_or_default()) {
            let certificate = certificate.map_err(|error| format!("the extra CA file is not PEM: {error}"))?;
            store
                .add(certificate)
                .map_err(|error| format!("the extra CA file holds no usable certificate: {error}"))?;
        }
        if extra_pem.is_some() && store.roots.len() == webpki_roots::TLS_SERVER_ROOTS.len() {
            return Err(
                "the extra CA file holds no certificate: it must be PEM (`-----BEGIN CERTIFICATE-----`)".to_owned()
            );
        }
        Ok(Self(Arc::new(store)))
    }

    /// Returns the configuration for HTTP, by HTTP/2 if the server offers it.
    pub(super) fn client_config(&self) -> ClientConfig {
        with_http_alpn(self.builder().with_no_client_auth())
    }

    /// For SMTP.
    pub(super) fn plain_config(&self) -> ClientConfig {
        self.builder().with_no_client_auth()
    }

    /// For SMTP where any certificate will do: encryption without it is better than none (RFC 7435).
    pub(super) fn unchecked_config() -> ClientConfig {
        let provider = Arc::new(ring::default_provider());
        let any = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
        versions(provider).dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    }

    /// For HTTP with a client certificate: PEM of the chain and of the private key.
    pub(super) fn config_with_certificate(&self, pem: &[u8]) -> Result<ClientConfig, &'static str> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| "it is not PEM")?;
        if chain.is_empty() {
            return Err("it holds no certificate");
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "it holds no private key")?;
        self.builder()
            .with_client_auth_cert(chain, key)
            .map(with_http_alpn)
            .map_err(|_| "its key does not fit its certificate, or is of an unknown kind")
    }

    fn builder(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        versions(Arc::new(ring::default_provider())).with_root_certificates(self.0.clone())
    }
}

fn versions(provider: Arc<CryptoProvider>) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    #[expect(clippy::expect_used, reason = "the provider's own suites support its default versions")]
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
}

/// Takes any certificate; its sender must have its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn with_http_alpn(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}
