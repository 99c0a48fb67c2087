//! Spans for OpenTelemetry, exported by OTLP where an endpoint is configured.
//!
//! Everything here costs next to nothing if none is: a [`Span`] then holds no more than the place in the trace that it
//! was given, and its attributes are never made.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan},
};
use tokio::runtime::Handle;

use super::TelemetryError;
use crate::node::config::TelemetryConfig;
use angarium_domain::trace::TraceContext;

/// An attribute's value.
pub use opentelemetry::Value;

/// How long one export may take, and the last one at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes spans, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Live>>);

struct Live {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The kind of a span, as the reader sees its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A request to this node.
    Server,
    /// A request by this node.
    Client,
    Internal,
}

/// A span of time; it ends when it is dropped.
#[derive(Default)]
pub struct Span {
    /// Boxed, so that a delivery that is not traced stays small.
    live: Option<Box<SdkSpan>>,
    context: Option<TraceContext>,
}

impl Tracer {
    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Exports spans from here on, if the configuration names where to.
    ///
    /// # Errors
    /// When the exporter can't be set up.
    pub fn start(config: &TelemetryConfig, node: &str) -> Result<Self, TelemetryError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(Self::off()) };
        let failed = |error: &dyn fmt::Display| TelemetryError::Traces(error.to_string());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new().map_err(|error| failed(&error))?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| failed(&error))?;
        let resource = Resource::builder()
            .with_service_name("angarium")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", node.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            // The creator of a trace has decided; the ratio applies to traces that begin here.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_sample_ratio))))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("angarium");
        Ok(Self(Some(Arc::new(Live { provider, tracer }))))
    }

    /// The span of a request: within the caller's trace, or the first of a new one.
    #[must_use]
    pub fn request(&self, name: impl FnOnce() -> String, caller: Option<TraceContext>) -> Span {
        match &self.0 {
            Some(live) if caller.as_ref().is_none_or(TraceContext::is_sampled) => {
                live.span(SpanBuilder::from_name(name()), Side::Server, caller.as_ref())
            }
            _ => Span { live: None, context: caller },
        }
    }

    /// A span within another; none without that, or where its trace is not recorded.
    #[must_use]
    pub fn child(&self, name: &'static str, side: Side, parent: Option<&TraceContext>) -> Span {
        self.within(parent, side, || SpanBuilder::from_name(name))
    }

    /// The same for something that began earlier.
    #[must_use]
    pub fn child_since(&self, name: &'static str, since: Timestamp, parent: Option<&TraceContext>) -> Span {
        self.within(parent, Side::Internal, || SpanBuilder::from_name(name).with_start_time(since))
    }

    fn within(&self, parent: Option<&TraceContext>, side: Side, builder: impl FnOnce() -> SpanBuilder) -> Span {
        match (&self.0, parent) {
            (Some(live), Some(parent)) if parent.is_sampled() => live.span(builder(), side, Some(parent)),
            _ => Span { live: None, context: parent.cloned() },
        }
    }

    /// Exports the remaining spans.
    pub async fn stop(&self) {
        let Some(live) = self.0.clone() else { return };
        let stopped = tokio::task::spawn_blocking(move || live.provider.shutdown_with_timeout(PATIENCE)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans are not exported");
        }
    }
}

impl Live {
    fn span(&self, builder: SpanBuilder, side: Side, parent: Option<&TraceContext>) -> Span {
        let around = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(parent)));
        let span = self.tracer.build_with_context(builder.with_kind(side.into()), &around);
        let context = span.span_context();
        let context = context.is_valid().then(|| TraceContext {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
            state: parent.and_then(|parent| parent.state.clone()),
        });
        Span { live: span.is_recording().then(|| Box::new(span)), context }
    }
}

impl Span {
    /// Returns the parent of the next span: this span, or the one that it replaces.
    #[must_use]
    pub const fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Adds attributes; they are computed only if they will be exported.
    pub fn set<const N: usize>(&mut self, attributes: impl FnOnce() -> [(&'static str, Value); N]) {
        if let Some(live) = &mut self.live {
            live.set_attributes(attributes().map(|(name, value)| KeyValue::new(name, value)));
        }
    }

    /// Marks the span as failed.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if let Some(live) = &mut self.live {
            live.set_status(Status::error(why()));
        }
    }
}

impl From<Side> for SpanKind {
    fn from(side: Side) -> Self {
        match side {
            Side::Server => Self::Server,
            Side::Client => Self::Client,
            Side::Internal => Self::Internal,
        }
    }
}

fn remote(context: &TraceContext) -> SpanContext {
    let state = context.state.as_deref().and_then(|state| state.parse::<TraceState>().ok());
    SpanContext::new(
        TraceId::from_bytes(context.trace.to_be_bytes()),
        SpanId::from_bytes(context.span.to_be_bytes()),
        TraceFlags::new(context.flags),
        true,
        state.unwrap_or_default(),
    )
}

/// The way to the collector. The exporter's thread knows no runtime; the requests run on the
/// gateway's.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    runtime: Handle,
}

impl Collector {
    fn new() -> reqwest::Result<Self> {
        // An error says that a crypto provider is installed already, which is the aim.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let mut answer = client.execute(request.try_into()?).await?;
            let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
            let mut response = Response::new(answer.bytes().await?);
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            Ok(response)
        });
        Box::pin(async move { sent.await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_endpoint_a_span_is_the_place_it_was_given() {
        let caller = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("a=1"));
        let tracer = Tracer::off();
        let request = tracer.request(|| unreachable!("no name is made"), caller.clone());
        let mut child = tracer.child("accept", Side::Internal, request.context());
        child.set::<1>(|| unreachable!("no attribute is made"));
        assert_eq!(child.context(), caller.as_ref());
        assert_eq!(tracer.request(String::new, None).context(), None);
    }
}
