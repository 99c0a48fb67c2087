//! A collector of OpenTelemetry: it takes OTLP over HTTP and keeps the spans.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::status::StatusCode as SpanStatus,
};
use prost::Message;

/// A span as it was exported, its ids in hexadecimal.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub state: String,
    pub began_ns: u64,
    pub ended_ns: u64,
    pub failed: bool,
    pub attributes: HashMap<String, String>,
    /// The attributes of the node that made it.
    pub resource: HashMap<String, String>,
}

/// The receiver. Its server ends with the test's runtime.
#[derive(Clone)]
pub struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    pub url: String,
}

impl Collector {
    pub async fn start() -> Self {
        let spans = Arc::default();
        let app = Router::new().route("/v1/traces", post(receive)).with_state(Arc::clone(&spans));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { spans, url }
    }

    /// The spans of a trace so far, in order of their beginning.
    pub fn trace(&self, id: &str) -> Vec<Span> {
        let mut spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace == id).collect();
        spans.sort_by_key(|span| span.began_ns);
        spans
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

async fn receive(State(spans): State<Arc<Mutex<Vec<Span>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    for exported in request.resource_spans {
        let resource = attributes(&exported.resource.map(|it| it.attributes).unwrap_or_default());
        let found = exported.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            state: span.trace_state,
            began_ns: span.start_time_unix_nano,
            ended_ns: span.end_time_unix_nano,
            failed: span.status.is_some_and(|status| status.code() == SpanStatus::Error),
            attributes: attributes(&span.attributes),
            resource: resource.clone(),
        });
        spans.lock().unwrap().extend(found);
    }
    StatusCode::OK
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(list: &[KeyValue]) -> HashMap<String, String> {
    let text = |it: &KeyValue| match it.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        _ => String::new(),
    };
    list.iter().map(|it| (it.key.clone(), text(it))).collect()
}
