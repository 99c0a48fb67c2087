//! The transport: it performs a provider's described request, with the secrets that the provider only named, to the
//! granted hosts, over pooled connections.
//!
//! It decides nothing about a delivery: it returns the answer, or a [`Fault`] that says whether the other side may have
//! received enough to act on. It stores nothing and logs nothing, and no secret is in its results.

pub mod byte_budget;
mod certificates;
mod connect;
mod describe;
mod dkim;
pub mod egress;
mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod mime;
mod oauth;
mod pool;
mod scrub;
pub mod sealing;
mod sigv4;
mod smtp;
mod splice;
mod tls;

use std::{fmt, sync::Arc, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::{
    describe::describe,
    egress::{Egress, HostGrant},
    pool::usage,
    splice::{Secrets, key_bytes},
};
use self::{http::HttpTransport, smtp::Smtp, splice::Material, tls::TlsRoots};
use crate::byte_budget::{ByteBudget, BytePermit};
use angarium_domain::{
    ids::{ConnectionId, TenantId},
    trace::TraceContext,
    transmission::{Blob, Fault, Reply, Transmission},
};

/// How the transport is set up.
#[derive(Debug, Clone, Default)]
pub struct TransportSettings {
    /// Networks that are open though they are not public (`egress.allow`).
    pub allow: Vec<IpNet>,
    /// PEM of certificate authorities to trust beside Mozilla's, for intranets and tests.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// The name that SMTP's EHLO gives if a provider leaves it to the host; empty for `localhost`.
    pub ehlo_name: String,
    /// The memory for long answers.
    pub bytes: Arc<ByteBudget>,
    /// When the process stops: mails that were not handed over by then are broken off.
    pub stop: CancellationToken,
}

/// Why the transport can't be set up; the text names the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSettings(String);

/// The data that accompanies a transmission.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub secrets: &'a Secrets,
    pub grant: HostGrant<'a>,
    /// An HTTP request ends by then: connecting, sending and reading the answer. A mail has the times of its steps.
    pub deadline: Instant,
    /// The lease that must hold for a mail to be handed over after a long conversation; `None` if no other node can
    /// have the delivery.
    pub hold: Option<&'a dyn Hold>,
    /// The wall clock, for signatures and assertions that carry a date.
    pub now: Timestamp,
    /// The `traceparent` and `tracestate` of an HTTP request; no signature covers them.
    pub trace: Option<&'a TraceContext>,
}

/// The caller's hold on a delivery.
pub trait Hold: fmt::Debug + Send + Sync {
    /// Whether no other node can have the delivery now, or soon.
    fn stands(&self) -> bool;
}

impl<'a> Call<'a> {
    /// The earlier of the call's deadline and the transmission's own.
    fn deadline_within(&self, timeout_ms: Option<u32>) -> Instant {
        match timeout_ms {
            Some(ms) => self.deadline.min(Instant::now() + Duration::from_millis(ms.into())),
            None => self.deadline,
        }
    }

    const fn material<'b>(&self, blobs: &'b [Blob]) -> Material<'b>
    where
        'a: 'b,
    {
        Material { secrets: self.secrets, blobs }
    }
}

/// A transmission with its referenced data. All of it leaves memory as it is written to the other side.
#[derive(Debug)]
pub struct Parcel {
    pub transmission: Transmission,
    pub blobs: Vec<Blob>,
    /// The permit for its bytes, if it is large; it returns with them.
    pub permit: Option<BytePermit>,
}

impl From<Transmission> for Parcel {
    fn from(transmission: Transmission) -> Self {
        Self { transmission, blobs: Vec::new(), permit: None }
    }
}

/// The way out. One for the process: connections, tokens and look-ups are shared.
pub struct Transport {
    http: HttpTransport,
    smtp: Smtp,
}

impl Transport {
    /// Sets the clients up; nothing is connected yet.
    ///
    /// # Errors
    /// When the extra certificate authorities are not PEM.
    pub fn new(settings: TransportSettings) -> Result<Self, InvalidSettings> {
        let egress = Egress::new(settings.allow.clone());
        Self::with_egress(settings, egress)
    }

    /// The same with a guard of the caller's, such as one with another resolver.
    ///
    /// # Errors
    /// When the extra certificate authorities are not PEM.
    pub fn with_egress(settings: TransportSettings, egress: Egress) -> Result<Self, InvalidSettings> {
        let egress = Arc::new(egress);
        let roots = TlsRoots::new(settings.extra_ca_pem.as_deref()).map_err(InvalidSettings)?;
        let http = HttpTransport::new(egress.clone(), &roots, settings.bytes);
        Ok(Self { http, smtp: Smtp::new(egress, &roots, settings.ehlo_name, settings.stop) })
    }

    /// Performs a transmission and returns the other side's answer. The parcel is gone once it is on its way: ten
    /// thousand may wait for their answers at a time.
    ///
    /// # Errors
    /// A [`Fault`] when there was no definite answer; `may_have_been_sent` is false only where
    /// nothing that the other side could act on has left.
    pub async fn perform(&self, parcel: Parcel, call: &Call<'_>) -> Result<Reply, Fault> {
        let Parcel { transmission, blobs, permit } = parcel;
        match transmission {
            Transmission::Http(request) => self.http.perform(request, blobs, permit, call).await,
            // Large: boxed, so that an HTTP request's future stays small.
            Transmission::Smtp(mail) => Box::pin(self.smtp.perform(mail, blobs, permit, call)).await,
        }
    }
}
