//! Write a delivery provider for Angarium.
//!
//! A provider describes and the gateway performs: [`Provider::prepare`] turns a delivery into a request, the gateway
//! sends it, and [`Provider::interpret`] returns the meaning of the answer. A guest has no sockets, no clock, no
//! randomness and no secrets, so everything here is a plain function of data, and a provider is tested on the author's
//! machine with files (see [`vectors`]).
//!
//! This crate must never give a component another import than the contract's `log`.
//!
//! ```
#![doc = include_str!("../examples/minimal.rs")]
//! ```

#[doc(hidden)]
pub mod bindings;
pub mod callback;
#[doc(hidden)]
pub mod callback_bindings;
mod describe;
mod export;
mod forms;
mod headers;
pub mod log;
#[cfg(target_arch = "wasm32")]
mod memory;
mod outcome;
mod request;
pub mod vectors;

/// The syntax of addresses, as in the gateway.
pub use angarium_address as address;
pub use bindings::plugin as contract;
pub use bindings::plugin::{
    Address, Auth, Basic, Blob, BlobRef, Context, Cost, Deduplication, Delivery, Descriptor, Disposition, Dkim,
    Encoding, HttpMethod, HttpRequest, HttpResponse, KeyFormat, Kv, Mail, NamedSecret, Reply, SecretRef, SecretSpec,
    Segment, Signature, SignatureAlgorithm, SignatureHeader, SmtpReply, SmtpSubmission, SmtpTimeouts, SmtpTls, Step,
    Transmission,
};
pub use export::{Adapter, Provider};
pub use forms::{form_encode, host_of_url};
pub use headers::{find_header, is_header_name, retry_after_ms};
pub use outcome::{Outcome, code};
pub use serde;
pub use serde_json;
