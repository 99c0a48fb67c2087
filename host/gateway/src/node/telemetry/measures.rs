//! The gateway's metrics: what there is, and handles that the hot path keeps, so that counting
//! neither looks a name up nor makes labels.
//!
//! No label has more values than an operator's own set-up: never a tenant, a message or a client's own word.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError, RwLock},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::TelemetryError;
use angarium_domain::{
    attempt::{FallbackReason, HOST_NOT_GRANTED, SECRET_UNAVAILABLE},
    breaker::Phase,
    delivery::DeliveryState,
    message::Priority,
    provider::Disposition,
};

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasureKind {
    Counter,
    Gauge,
    Histogram,
}

/// One of the gateway's metrics.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MeasureKind,
    pub labels: &'static [&'static str],
    pub what: &'static str,
}

const fn metric(kind: MeasureKind, name: &'static str, labels: &'static [&'static str], what: &'static str) -> Metric {
    Metric { name, kind, labels, what }
}

/// All of them, as `docs/operators.md` lists them.
pub const METRICS: &[Metric] = {
    use MeasureKind::{Counter, Gauge, Histogram};
    &[
        metric(
            Histogram,
            "angarium_http_seconds",
            &["route", "method", "status"],
            "requests to the API, and their duration",
        ),
        metric(Histogram, "angarium_accept_seconds", &[], "time from a valid request until its messages are durable"),
        metric(Histogram, "angarium_accept_batch_size", &[], "messages stored in one transaction"),
        metric(
            Gauge,
            "angarium_queue_depth",
            &["priority"],
            "deliveries that wait in the database, due or not; counted up to 100,000",
        ),
        metric(
            Gauge,
            "angarium_queue_oldest_seconds",
            &["priority"],
            "age of the longest due delivery in the database",
        ),
        metric(
            Histogram,
            "angarium_queue_wait_seconds",
            &["priority"],
            "time from the due time of an attempt until it began",
        ),
        metric(
            Counter,
            "angarium_attempts_total",
            &["channel", "provider", "disposition"],
            "attempts by disposition; the provider is empty if no connection could be asked",
        ),
        metric(
            Counter,
            "angarium_retries_total",
            &["channel", "provider"],
            "attempts after which the delivery waits for another round",
        ),
        metric(
            Counter,
            "angarium_script_faults_total",
            &["hook"],
            "runs of scripts that failed; the declared default applied",
        ),
        metric(Counter, "angarium_scripts_switched_off_total", &[], "scripts that failed 20 times in a minute"),
        metric(
            Counter,
            "angarium_rule_expressions_failing_total",
            &["switched_off"],
            "times that a rule's expression failed 20 times in a minute; `false` if the rule stays on because it refuses",
        ),
        metric(
            Counter,
            "angarium_rules_unasked_total",
            &[],
            "messages whose rules and scripts were not all asked, for lack of time",
        ),
        metric(
            Counter,
            "angarium_shadow_questions_dropped_total",
            &[],
            "questions that were not put to shadows because too many waited",
        ),
        metric(
            Counter,
            "angarium_follow_ups_total",
            &["result"],
            "follow-ups that scripts asked for: `accepted` or `refused`",
        ),
        metric(
            Counter,
            "angarium_condition_waits_total",
            &[],
            "times that a message went back to the queue because its condition did not hold",
        ),
        metric(
            Gauge,
            "angarium_secrets_unavailable",
            &[],
            "stored secrets under keys that this node does not have; deliveries that need them wait",
        ),
        metric(
            Counter,
            "angarium_withheld_total",
            &["reason"],
            "attempts that wait for the operator: `secret_unavailable`, `host_not_granted`",
        ),
        metric(
            Counter,
            "angarium_retries_postponed_total",
            &["channel", "provider"],
            "retries postponed because their connection's retry budget was spent",
        ),
        metric(Counter, "angarium_deliveries_ended_total", &["channel", "state"], "deliveries that a node ended"),
        metric(
            Gauge,
            "angarium_dead_letters",
            &["channel", "state"],
            "deliveries that wait for a person, counted up to 10,000 in all; the channel is empty if no connection could \
             be asked",
        ),
        metric(
            Histogram,
            "angarium_provider_seconds",
            &["provider"],
            "duration of one exchange with a provider, with or without an answer",
        ),
        metric(Histogram, "angarium_plugin_seconds", &["provider"], "CPU time in the component for an attempt"),
        metric(
            Histogram,
            "angarium_plugin_memory_bytes",
            &["provider"],
            "highest memory of the component in an attempt",
        ),
        metric(
            Counter,
            "angarium_plugin_failures_total",
            &["provider", "kind"],
            "calls in which the component trapped, broke a limit or gave an invalid answer",
        ),
        metric(
            Counter,
            "angarium_quarantines_total",
            &["provider"],
            "versions taken out of service because they failed five times in a row for several tenants",
        ),
        metric(
            Counter,
            "angarium_tenant_quarantines_total",
            &["provider"],
            "times that a version was taken from one tenant because its deliveries failed five times in a row",
        ),
        metric(
            Gauge,
            "angarium_breaker_state",
            &["provider", "state"],
            "connections whose circuit breaker is in this state",
        ),
        metric(
            Counter,
            "angarium_breaker_changes_total",
            &["provider", "state"],
            "changes of circuit breakers into this state by this node",
        ),
        metric(
            Counter,
            "angarium_deferrals_total",
            &["reason"],
            "deliveries put back into the queue because all of their connections are open or limited",
        ),
        metric(Gauge, "angarium_deliveries_in_flight", &[], "deliveries that this node is handling"),
        metric(Gauge, "angarium_slots_taken", &[], "taken slots for deliveries in this node's memory"),
        metric(Gauge, "angarium_slots_max", &[], "slots for deliveries in this node's memory"),
        metric(Gauge, "angarium_message_bytes_taken", &[], "bytes of messages in this node's memory"),
        metric(Gauge, "angarium_message_bytes_max", &[], "most bytes of messages in this node's memory"),
        metric(
            Gauge,
            "angarium_large_bytes_taken",
            &["of"],
            "bytes reserved for `arrivals` (large messages while they are stored) and `contents` (while requests are made of them)",
        ),
        metric(Gauge, "angarium_large_bytes_max", &["of"], "most bytes that can be reserved for these"),
        metric(Gauge, "angarium_large_waiting", &["of"], "deliveries and answers that wait for such bytes"),
        metric(Gauge, "angarium_leases_held", &[], "batches of deliveries that this node holds"),
        metric(
            Gauge,
            "angarium_db_connections",
            &["pool", "state"],
            "open connections to the database, in use or idle",
        ),
        metric(Gauge, "angarium_db_connections_max", &["pool"], "most connections that a pool opens"),
        metric(
            Gauge,
            "angarium_http_server_connections",
            &["state"],
            "clients' connections that work on a request (`busy`) or wait for one (`idle`)",
        ),
        metric(
            Counter,
            "angarium_http_server_refused_total",
            &["reason"],
            "refusals to clients: `connections` at a limit, `descriptors` without a free file, `late` heads, `malformed` \
             requests",
        ),
        metric(Gauge, "angarium_http_client_connections", &[], "open HTTP connections to providers"),
        metric(Gauge, "angarium_http_client_requests", &[], "HTTP requests to providers that wait for their answer"),
        metric(Gauge, "angarium_ledger_writable", &[], "1 while outcomes can be written; with 0 nothing is sent"),
        metric(
            Counter,
            "angarium_callbacks_total",
            &["provider", "result"],
            "callbacks `taken`, `not_genuine`, `foreign` or `failed`",
        ),
        metric(
            Counter,
            "angarium_receipts_total",
            &["kind", "result"],
            "receipts that `moved` a delivery, were `kept`, were `repeated`, that `waits` for an outcome, or stayed `unmatched`",
        ),
        metric(Histogram, "angarium_ledger_batch_size", &[], "outcomes written in one transaction"),
        metric(
            Counter,
            "angarium_late_writes_refused_total",
            &[],
            "outcomes refused because the node had lost its lease",
        ),
        metric(Counter, "angarium_recovered_deliveries_total", &[], "deliveries taken over from lost nodes"),
        metric(Gauge, "angarium_build_info", &["version"], "1, with the running version"),
    ]
};

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// A component takes some tens of microseconds.
const PLUGIN_SECONDS: [f64; 9] = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05];
/// A retry may wait for hours.
const WAIT_SECONDS: [f64; 12] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0];
const BATCHES: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
const MIB: f64 = 1_048_576.0;
const MEMORY_BYTES: [f64; 9] =
    [MIB / 8.0, MIB / 2.0, MIB, 2.0 * MIB, 4.0 * MIB, 8.0 * MIB, 16.0 * MIB, 32.0 * MIB, 64.0 * MIB];

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(full("angarium_plugin_seconds"), &PLUGIN_SECONDS)?
        .set_buckets_for_metric(full("angarium_queue_wait_seconds"), &WAIT_SECONDS)?
        .set_buckets_for_metric(full("angarium_plugin_memory_bytes"), &MEMORY_BYTES)?
        .set_buckets_for_metric(Matcher::Suffix("_batch_size".to_owned()), &BATCHES)
}

/// The process's metrics, to be rendered for Prometheus.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    /// Values that are read when metrics are requested, and cost nothing until then.
    sampled: Arc<Mutex<Vec<Sample>>>,
}

struct Sample {
    gauge: Gauge,
    read: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl Metrics {
    /// Records the process's metrics from here on.
    ///
    /// # Errors
    /// When the process has a recorder already.
    pub fn start() -> Result<Self, TelemetryError> {
        let recorder = builder().map_err(|error| TelemetryError::Metrics(error.to_string()))?.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| TelemetryError::Metrics(error.to_string()))?;
        METRICS.iter().for_each(describe);
        // Counters that alerts watch exist from the beginning: a first event is a rise.
        counter!("angarium_late_writes_refused_total").absolute(0);
        counter!("angarium_recovered_deliveries_total").absolute(0);
        for reason in [SECRET_UNAVAILABLE, HOST_NOT_GRANTED] {
            counter!("angarium_withheld_total", "reason" => reason).absolute(0);
        }
        gauge!("angarium_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let kept = handle.clone();
        std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(5));
                kept.run_upkeep();
            }
        })?;
        Ok(Self { handle, sampled: Arc::default() })
    }

    /// A gauge that is read whenever the metrics are rendered.
    pub fn sample(&self, gauge: Gauge, read: impl Fn() -> f64 + Send + Sync + 'static) {
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner).push(Sample { gauge, read: Box::new(read) });
    }

    /// In Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        for sample in self.sampled.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sample.gauge.set((sample.read)());
        }
        self.handle.render()
    }
}

fn describe(metric: &Metric) {
    match metric.kind {
        MeasureKind::Counter => metrics::describe_counter!(metric.name, metric.what),
        MeasureKind::Gauge => metrics::describe_gauge!(metric.name, metric.what),
        MeasureKind::Histogram => metrics::describe_histogram!(metric.name, metric.what),
    }
}

/// Why a call of a component fails.
const PLUGIN_FAILURES: [&str; 8] =
    ["trap", "deadline", "memory", "output", "state", "invalid_answer", "invalid_transmission", "host"];

/// The counters of a channel's attempts through a provider.
pub struct Lane {
    attempts: [(Disposition, Counter); 7],
    retries: Counter,
    postponed: Counter,
    ended: [(DeliveryState, Counter); 5],
    exchange: Histogram,
    plugin_cpu: Histogram,
    plugin_memory: Histogram,
    plugin_failures: [(&'static str, Counter); 8],
}

/// Returns the handles of a channel and a provider. Both are empty if no candidate could be asked, because a channel
/// without a provider is an arbitrary word of a client.
#[must_use]
pub fn lane(channel: &str, provider: &str) -> Arc<Lane> {
    type Providers = HashMap<String, Arc<Lane>>;
    static LANES: LazyLock<RwLock<HashMap<String, Providers>>> = LazyLock::new(RwLock::default);
    let known = LANES.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(lane) = known.get(channel).and_then(|providers| providers.get(provider)) {
        return Arc::clone(lane);
    }
    drop(known);
    let mut lanes = LANES.write().unwrap_or_else(PoisonError::into_inner);
    let providers = lanes.entry(channel.to_owned()).or_default();
    Arc::clone(providers.entry(provider.to_owned()).or_insert_with(|| Arc::new(Lane::new(channel, provider))))
}

impl Lane {
    fn new(channel: &str, provider: &str) -> Self {
        use DeliveryState::{Expired, Failed, Sent, Unknown, Unroutable};
        let (channel, provider) = (channel.to_owned(), provider.to_owned());
        // Without a candidate, nothing ran.
        let of_provider = |name: &'static str| match provider.is_empty() {
            true => Histogram::noop(),
            false => histogram!(name, "provider" => provider.clone()),
        };
        let failures = |kind: &'static str| match provider.is_empty() {
            true => Counter::noop(),
            false => counter!("angarium_plugin_failures_total", "provider" => provider.clone(), "kind" => kind),
        };
        Self {
            attempts: Disposition::ALL.map(|it| {
                let (channel, provider) = (channel.clone(), provider.clone());
                let name = it.as_str();
                (it, counter!("angarium_attempts_total", "channel" => channel, "provider" => provider, "disposition" => name))
            }),
            ended: [Sent, Failed, Expired, Unroutable, Unknown].map(|it| {
                (it, counter!("angarium_deliveries_ended_total", "channel" => channel.clone(), "state" => it.as_str()))
            }),
            postponed: counter!("angarium_retries_postponed_total", "channel" => channel.clone(), "provider" => provider.clone()),
            retries: counter!("angarium_retries_total", "channel" => channel, "provider" => provider.clone()),
            exchange: of_provider("angarium_provider_seconds"),
            plugin_cpu: of_provider("angarium_plugin_seconds"),
            plugin_memory: of_provider("angarium_plugin_memory_bytes"),
            plugin_failures: PLUGIN_FAILURES.map(|kind| (kind, failures(kind))),
        }
    }

    /// Counts an attempt with this disposition.
    pub fn attempted(&self, disposition: Disposition) {
        increment(&self.attempts, &disposition);
    }

    /// The delivery waits for another round.
    pub fn retries(&self) {
        self.retries.increment(1);
    }

    /// A retry was put off.
    pub fn postponed(&self) {
        self.postponed.increment(1);
    }

    /// The delivery has come to an end.
    pub fn ended(&self, state: DeliveryState) {
        increment(&self.ended, &state);
    }

    /// The provider was asked for so long.
    pub fn exchanged(&self, time: Duration) {
        self.exchange.record(time);
    }

    /// Records an attempt's use of the component.
    pub fn ran(&self, cpu: Duration, memory: u64) {
        self.plugin_cpu.record(cpu);
        self.plugin_memory.record(memory as f64);
    }

    /// The component failed in this way.
    pub fn failed(&self, kind: &'static str) {
        increment(&self.plugin_failures, &kind);
    }
}

fn increment<K: PartialEq>(counters: &[(K, Counter)], key: &K) {
    if let Some((_, counter)) = counters.iter().find(|(it, _)| it == key) {
        counter.increment(1);
    }
}

/// Methods that have a name in the metrics; a client can send any word.
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// A request to the API is over. `route` is the path as it is documented, or empty.
pub fn requested(route: &str, method: &str, status: u16, time: Duration) {
    type Known = HashMap<String, HashMap<(&'static str, u16), Histogram>>;
    static KNOWN: LazyLock<RwLock<Known>> = LazyLock::new(RwLock::default);
    let method = METHODS.into_iter().find(|it| *it == method).unwrap_or("other");
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(histogram) = known.get(route).and_then(|it| it.get(&(method, status))) {
        return histogram.record(time);
    }
    drop(known);
    let make = || histogram!("angarium_http_seconds", "route" => route.to_owned(), "method" => method, "status" => status.to_string());
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.entry(route.to_owned()).or_default().entry((method, status)).or_insert_with(make).record(time);
}

/// An attempt began so long after it was due.
pub fn waited(priority: Priority, time: Duration) {
    static WAITS: LazyLock<HashMap<Priority, Histogram>> = LazyLock::new(|| {
        by_priority(|priority| histogram!("angarium_queue_wait_seconds", "priority" => priority.as_str()))
    });
    if let Some(histogram) = WAITS.get(&priority) {
        histogram.record(time);
    }
}

/// The queue was looked at: how many wait, and for how long the longest due one has.
pub fn queued(priority: Priority, waiting: i64, oldest_seconds: f64) {
    gauge!("angarium_queue_depth", "priority" => priority.as_str()).set(waiting as f64);
    gauge!("angarium_queue_oldest_seconds", "priority" => priority.as_str()).set(oldest_seconds);
}

/// Sets the numbers of dead letters of each channel and state. Combinations without an entry become zero.
pub fn dead_letters(counts: impl IntoIterator<Item = (String, DeliveryState, i64)>) {
    static SHOWN: Mutex<BTreeMap<(String, &'static str), i64>> = Mutex::new(BTreeMap::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    shown.values_mut().for_each(|count| *count = 0);
    shown.extend(counts.into_iter().map(|(channel, state, count)| ((channel, state.as_str()), count)));
    for ((channel, state), count) in &*shown {
        gauge!("angarium_dead_letters", "channel" => channel.clone(), "state" => *state).set(*count as f64);
    }
}

/// Sets the number of a provider's connections whose circuit breaker is in this phase.
pub fn breakers(provider: &str, phase: Phase, count: i64) {
    gauge!("angarium_breaker_state", "provider" => provider.to_owned(), "state" => phase.as_str()).set(count as f64);
}

/// A circuit breaker has come into this phase.
pub fn breaker_changed(provider: &str, phase: Phase) {
    counter!("angarium_breaker_changes_total", "provider" => provider.to_owned(), "state" => phase.as_str())
        .increment(1);
}

/// A script failed in this hook; the failure may have switched it off.
pub fn script_failed(hook: &str, switched_off: bool) {
    counter!("angarium_script_faults_total", "hook" => hook.to_owned()).increment(1);
    if switched_off {
        counter!("angarium_scripts_switched_off_total").increment(1);
    }
}

/// A rule's expression has failed too often.
pub fn rule_failed(switched_off: bool) {
    let switched_off = if switched_off { "true" } else { "false" };
    counter!("angarium_rule_expressions_failing_total", "switched_off" => switched_off).increment(1);
}

/// There was no time to ask all rules and scripts about a message.
pub fn rules_unasked() {
    counter!("angarium_rules_unasked_total").increment(1);
}

/// A shadow was not asked.
pub fn shadow_dropped() {
    counter!("angarium_shadow_questions_dropped_total").increment(1);
}

/// A message that a script wanted to follow an end.
pub fn followed_up(accepted: bool) {
    let result = if accepted { "accepted" } else { "refused" };
    counter!("angarium_follow_ups_total", "result" => result).increment(1);
}

/// Nothing left in an attempt, since the operator has to mend something.
pub fn withheld(reason: &'static str) {
    counter!("angarium_withheld_total", "reason" => reason).increment(1);
}

/// Sets the number of stored secrets under keys that this node does not have.
pub fn secrets_unavailable(secrets: i64) {
    gauge!("angarium_secrets_unavailable").set(secrets as f64);
}

/// A message waits longer, since its condition did not hold.
pub fn condition_waits() {
    counter!("angarium_condition_waits_total").increment(1);
}

/// A delivery was put back into the queue for this reason.
pub fn deferred(reason: FallbackReason) {
    counter!("angarium_deferrals_total", "reason" => reason.as_str()).increment(1);
}

fn by_priority<T>(make: impl Fn(Priority) -> T) -> HashMap<Priority, T>
where
    Priority: Eq + Hash,
{
    Priority::ALL.into_iter().map(|priority| (priority, make(priority))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_counted_in_outcomes_and_not_in_seconds() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || histogram!("angarium_ledger_batch_size").record(150.0));
        let text = handle.render();
        assert!(text.contains("angarium_ledger_batch_size_bucket{le=\"100\"} 0"), "{text}");
        assert!(text.contains("angarium_ledger_batch_size_bucket{le=\"200\"} 1"), "{text}");
        assert!(!text.contains("0.0005"), "{text}");
    }

    #[test]
    fn a_lane_has_a_series_for_whatever_an_answer_means() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || Lane::new("sms", "acme").attempted(Disposition::AuthFailed));
        let text = handle.render();
        let series = |disposition: &str, count: u32| {
            let line = format!("channel=\"sms\",provider=\"acme\",disposition=\"{disposition}\"}} {count}");
            assert!(text.contains(&line), "{line} in {text}");
        };
        series("auth_failed", 1);
        series("unknown", 0);
    }

    #[test]
    fn names_have_their_units() {
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("angarium_"), "{name}");
            assert_eq!(metric.kind == MeasureKind::Counter, name.ends_with("_total"), "{name}");
        }
    }
}
