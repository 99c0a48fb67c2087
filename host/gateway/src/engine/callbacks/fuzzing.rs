//! The access of the fuzz targets to the proof. It is not in a build for use.

use jiff::Timestamp;

use super::proof::{self, CallbackEvidence};
use angarium_domain::callback::Callback;
use angarium_transport::{Secrets, sealing::Secret};

/// Whether a callback would be believed by a connection that has this one secret.
pub fn is_genuine(callback: &Callback, body: &[u8], name: &str, secret: &[u8]) -> bool {
    let secrets: Secrets = [(name.to_owned(), vec![Secret::new(secret)])].into_iter().collect();
    let evidence = CallbackEvidence { body, secrets: &secrets, may_be_unsigned: false, now: Timestamp::UNIX_EPOCH };
    proof::is_genuine(callback, &evidence)
}
