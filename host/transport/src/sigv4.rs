//! AWS Signature Version 4, in headers.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use hyper::Method;
use jiff::{Timestamp, tz::TimeZone};
use ring::{digest, hmac};
use url::Url;
use zeroize::Zeroizing;

use super::splice::percent_encode;

/// The identity and the scope of a signature.
pub(super) struct Signer<'a> {
    pub(super) access_key: &'a str,
    pub(super) secret_key: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) now: Timestamp,
}

/// The request as far as it is signed. `headers` are those that the signature covers beside
/// `host` and `x-amz-date`, in lower case.
pub(super) struct SigV4Signature<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a Url,
    pub(super) headers: Vec<(&'a str, &'a str)>,
    pub(super) body: &'a [u8],
}

/// The values of `x-amz-date` and `authorization`.
pub(super) struct SignedHeaders {
    pub(super) date: String,
    pub(super) authorization: String,
}

impl Signer<'_> {
    /// Signs a request.
    pub(super) fn sign(&self, request: &SigV4Signature<'_>) -> SignedHeaders {
        let date = self.now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &date[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let (canonical, names) = self.canonical_request(request, &date);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let signature = hex::encode(hmac_sha256(&self.key(day), text.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key
        );
        SignedHeaders { date, authorization }
    }

    fn key(&self, day: &str) -> Zeroizing<Vec<u8>> {
        let secret = Zeroizing::new(format!("AWS4{}", self.secret_key));
        let parts = [day, self.region, self.service, "aws4_request"];
        parts.iter().fold(Zeroizing::new(secret.as_bytes().to_vec()), |key, part| {
            Zeroizing::new(hmac_sha256(&key, part.as_bytes()))
        })
    }

    fn canonical_request(&self, request: &SigV4Signature<'_>, date: &str) -> (String, String) {
        let host = authority(request.url);
        let mut headers = request.headers.clone();
        headers.push(("host", &host));
        headers.push(("x-amz-date", date));
        headers.sort_unstable();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let canonical = format!(
            "{}\n{}\n{}\n{lines}\n{names}\n{}",
            request.method,
            self.canonical_path(request.url),
            canonical_query(request.url),
            sha256_hex(request.body)
        );
        (canonical, names)
    }

    /// Every service but S3 encodes the path, which is encoded already, once more.
    fn canonical_path(&self, url: &Url) -> String {
        if self.service == "s3" {
            return url.path().to_owned();
        }
        let parts = url.path().split('/').map(percent_encoded);
        parts.collect::<Vec<_>>().join("/")
    }
}

fn canonical_query(url: &Url) -> String {
    let mut pairs: Vec<_> =
        url.query_pairs().map(|(name, value)| (percent_encoded(&name), percent_encoded(&value))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Returns the `Host` header that the client sends: the port only if it is not the scheme's own.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn percent_encoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    text.bytes().for_each(|byte| percent_encode(byte, &mut out));
    String::from_utf8_lossy(&out).into_owned()
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(method: Method, url: &str, headers: Vec<(&str, &str)>, body: &str) -> String {
        let signer = Signer {
            access_key: "AKIDEXAMPLE",
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            service: "service",
            now: "2015-08-30T12:36:00Z".parse().unwrap(),
        };
        let url = Url::parse(url).unwrap();
        let signed = signer.sign(&SigV4Signature { method: &method, url: &url, headers, body: body.as_bytes() });
        assert_eq!(signed.date, "20150830T123600Z");
        signed.authorization.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// AWS's published test suite: `get-vanilla`, `post-vanilla`, `get-vanilla-query-order-key-case`,
    /// `post-x-www-form-urlencoded`, `get-space-normalized`.
    #[test]
    fn signatures_match_the_published_suite() {
        let base = "https://example.amazonaws.com/";
        assert_eq!(
            signature(Method::GET, base, vec![], ""),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(
            signature(Method::POST, base, vec![], ""),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        assert_eq!(
            signature(Method::GET, &format!("{base}?Param2=value2&Param1=value1"), vec![], ""),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        );
    }
}
