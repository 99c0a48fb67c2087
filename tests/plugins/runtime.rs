//! Every component matches its description, and every misbehaviour of the fixture is contained and named.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use angarium_domain::{
    callback::{CallbackCheck, CallbackContext, CallbackRequest},
    ids::TenantId,
    message::MOST_CONTENT,
    provider::{CallContext, Disposition, Item, Step},
    receipt::ReceiptKind,
    redaction::Redactor,
    transmission::{Kv, Reply, Transmission},
};
use angarium_runtime::{
    CacheSettings, CallError, CallLimits, Called, Component, GuestFault, GuestFaultKind, QuarantineScope, Quarantined,
    Registry, Runtime, RuntimeSettings,
};
use serde_json::json;

const LOG: &str = "angarium:provider/log@1.0.0";
const CONFIG: &str = r#"{"url":"https://example.org/hook"}"#;

/// One engine for all tests: each reserves address space for its instances.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new(RuntimeSettings::default()).unwrap());
static FIXTURE: LazyLock<Arc<Component>> = LazyLock::new(|| admit(&file("fixture")));

/// With time to spare, so that a slow machine reaches every other limit.
static PATIENT_FIXTURE: LazyLock<Arc<Component>> = LazyLock::new(|| {
    let (deadline, patience) = (Duration::from_secs(20), Duration::from_secs(60));
    let limits = CallLimits { deadline, patience, live_instances: 1, ..CallLimits::default() };
    let runtime = Runtime::new(RuntimeSettings { limits, ..RuntimeSettings::default() }).unwrap();
    runtime.admit(&file("fixture")).unwrap()
});

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins")
}

fn file(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.wasm"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask plugins` builds it", path.display()))
}

fn admit(bytes: &[u8]) -> Arc<Component> {
    RUNTIME.admit(bytes).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// The same component under another digest: with a custom section, which means nothing.
fn version(mut bytes: Vec<u8>, mark: u8) -> Vec<u8> {
    bytes.extend([0, 2, 1, mark]);
    bytes
}

fn context() -> CallContext {
    CallContext {
        now_ms: 1_700_000_000_000.0,
        attempt: 1,
        seed: [7; 32],
        secrets: vec!["token".to_owned()],
        callback_url: None,
        redactor: Default::default(),
    }
}

fn item(text: &str) -> Item {
    Item {
        id: "dlv_1".to_owned(),
        key: "key-1".to_owned(),
        channel: "webhook".to_owned(),
        text: Some(text.to_owned()),
        ..Item::default()
    }
}

fn accepted() -> Reply {
    Reply::Http { status: 200, headers: Vec::new(), body: "{}".into(), cut: None }
}

fn prepare(mode: &str) -> Called<Step> {
    FIXTURE.prepare(&context(), CONFIG, &[item(mode)])
}

fn prepare_patiently(mode: &str) -> Called<Step> {
    PATIENT_FIXTURE.prepare(&context(), CONFIG, &[item(mode)])
}

fn interpret(state: &str) -> Called<Step> {
    FIXTURE.interpret(&context(), CONFIG, state.as_bytes(), &accepted())
}

fn interpret_patiently(state: &str) -> Called<Step> {
    PATIENT_FIXTURE.interpret(&context(), CONFIG, state.as_bytes(), &accepted())
}

fn fault(called: Called<Step>) -> GuestFault {
    match called.result {
        Err(CallError::Broken(fault)) => fault,
        other => panic!("expected a fault, got {other:?}"),
    }
}

#[test]
fn no_component_imports_more_than_the_log() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            let component = admit(&fs::read(&path).unwrap());
            assert_eq!(component.imports(), [LOG], "{}", path.display());
            assert_eq!(path.file_stem().unwrap(), component.descriptor().name.as_str());
            names.push(component.descriptor().name.clone());
        }
    }
    assert!(names.len() >= 2, "{names:?}");
}

fn callback(query: &str, body: &'static str) -> (CallbackContext, CallbackRequest) {
    let url = format!("https://gw.example/v1/callbacks/t{query}");
    let request = CallbackRequest { method: "POST".to_owned(), url, headers: Vec::new(), body: body.into() };
    let secrets = vec!["token".to_owned()];
    (CallbackContext { now_ms: 1_700_000_000_000.0, secrets, redactor: Default::default() }, request)
}

#[test]
fn a_component_reads_callbacks_or_does_not() {
    let webhook = admit(&file("webhook"));
    assert!(FIXTURE.reads_callbacks() && admit(&file("sms-twilio")).reads_callbacks());
    assert!(!webhook.reads_callbacks() && !admit(&file("email-smtp")).reads_callbacks());
    let (ctx, request) = callback("", "[]");
    match webhook.parse_callback(&ctx, CONFIG, &request).result {
        Err(CallError::Broken(fault)) => assert_eq!(fault.kind, GuestFaultKind::Host),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_callback_is_read() {
    let body = r#"[{"kind": "delivered", "delivery": "dlv_0192f0c1a2b37c4d8e5f60718293a4b5", "at_ms": 1.0, "code": "0"},
        {"kind": "of_its_own", "delivery": "not an id", "external_id": "a\nb", "at_ms": -1.0}]"#;
    let (ctx, request) = callback("?check=unsigned", body);
    let read = FIXTURE.parse_callback(&ctx, CONFIG, &request).result.unwrap().unwrap();
    assert_eq!(read.checks, [CallbackCheck::Unsigned]);
    let [first, second] = read.receipts.as_slice() else { panic!("{:?}", read.receipts) };
    assert_eq!(
        (&first.kind, first.unified_code.as_str(), first.detail.as_str()),
        (&ReceiptKind::Delivered, "ok", "{}")
    );
    assert!(first.delivery.is_some() && first.at.is_some());
    // Data that the other side may have brought in is left out if it cannot be right.
    assert_eq!(second.kind, ReceiptKind::Other("of_its_own".to_owned()));
    assert_eq!((second.delivery, &second.external_id, second.at), (None, &None, None));
    let (ctx, request) = callback("", "no JSON");
    let refused = FIXTURE.parse_callback(&ctx, CONFIG, &request).result.unwrap();
    assert_eq!(refused.unwrap_err(), "the body is not a list of events");
}

#[test]
fn each_misbehaviour_over_a_callback_is_named() {
    for (query, kind, words) in [
        ("?misbehave=spin", GuestFaultKind::Deadline, "no answer after"),
        ("?misbehave=trap", GuestFaultKind::Trap, "unreachable"),
        ("?misbehave=panic", GuestFaultKind::Trap, "asked to panic"),
        (
            "?misbehave=many-events",
            GuestFaultKind::InvalidAnswer,
            "`callback.events` must have at most 1000 entries (got 5000)",
        ),
        ("?misbehave=invalid", GuestFaultKind::InvalidAnswer, "`callback.events[0].kind`"),
        ("?misbehave=bad-reply", GuestFaultKind::InvalidAnswer, "`callback.reply.status`"),
    ] {
        let (ctx, request) = callback(query, "[]");
        match FIXTURE.parse_callback(&ctx, CONFIG, &request).result {
            Err(CallError::Broken(fault)) => {
                assert_eq!(fault.kind, kind, "{query}: {fault}");
                assert!(fault.detail.contains(words), "{query}: {fault}");
            }
            other => panic!("{query}: {other:?}"),
        }
    }
}

#[test]
fn a_delivery_goes_out_and_its_answer_comes_in() {
    let webhook = admit(&file("webhook"));
    let called = webhook.prepare(&context(), CONFIG, &[item("hello")]);
    assert!(called.usage.peak_memory > 0 && called.usage.wall >= called.usage.cpu / 2, "{:?}", called.usage);
    let Ok(Step::Send { transmission: Transmission::Http(request), state }) = called.result else {
        panic!("{:?}", called.result);
    };
    assert_eq!(request.url, "https://example.org/hook");
    let Ok(Step::Done(outcomes)) = webhook.interpret(&context(), CONFIG, &state, &accepted()).result else {
        panic!("no outcome");
    };
    assert_eq!(outcomes[0].disposition, Disposition::Accepted);
}

#[test]
fn a_verdict_is_no_fault() {
    let webhook = admit(&file("webhook"));
    let called = webhook.prepare(&context(), "{}", &[item("no url anywhere")]);
    let Err(error @ CallError::Judged(_)) = &called.result else { panic!("{:?}", called.result) };
    assert!(!error.is_the_guests());
}

#[test]
fn a_config_is_checked_by_the_components_schema() {
    let webhook = admit(&file("webhook"));
    assert!(webhook.validate_config(&json!({"url": "https://example.org"})).is_empty());
    let problems = webhook.validate_config(&json!({"url": "s3cret://x", "timeout_ms": 1}));
    let pointers: Vec<&str> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
    assert_eq!(pointers, ["/timeout_ms", "/url"]);
    assert!(problems.iter().all(|problem| !problem.detail.contains("s3cret")), "{problems:?}");
}

#[test]
fn each_misbehaviour_in_prepare_is_named() {
    let expected = [
        ("grow", GuestFaultKind::Memory, "bytes of memory"),
        ("recurse", GuestFaultKind::Trap, "wasm trap: "),
        ("trap", GuestFaultKind::Trap, "unreachable"),
        ("panic", GuestFaultKind::Trap, "the fixture was asked to panic"),
        ("huge", GuestFaultKind::Output, "exhausted"),
        ("big-state", GuestFaultKind::State, "`send.state` must have at most 65536 bytes (got 131072)"),
        ("many-headers", GuestFaultKind::InvalidTransmission, "must have at most 192 entries"),
        ("invalid-url", GuestFaultKind::InvalidTransmission, "`http.url` must be a URL"),
        ("invalid-header", GuestFaultKind::InvalidTransmission, "control character"),
        ("empty-outcomes", GuestFaultKind::InvalidAnswer, "`done` must have 1 outcome (got 0)"),
        ("nan-wait", GuestFaultKind::InvalidAnswer, "`wait.ms` must be a number of milliseconds (got NaN)"),
    ];
    for (mode, kind, detail) in expected {
        let fault = fault(prepare_patiently(mode));
        assert_eq!(fault.kind, kind, "{mode}: {fault}");
        assert!(fault.detail.contains(detail), "{mode}: {fault}");
    }
}

#[test]
fn each_misbehaviour_in_interpret_is_named() {
    let expected = [
        ("trap-in-interpret", GuestFaultKind::Trap, "unreachable"),
        ("panic-in-interpret", GuestFaultKind::Trap, "the fixture was asked to panic"),
        ("huge-outcome", GuestFaultKind::Output, "exhausted"),
        ("two-outcomes", GuestFaultKind::InvalidAnswer, "`done` must have 1 outcome (got 2)"),
        ("nan", GuestFaultKind::InvalidAnswer, "`done[0].cost.micros` must be an amount (got NaN)"),
        ("invalid-outcome", GuestFaultKind::InvalidAnswer, "`done[0].ext` must be a JSON object"),
    ];
    for (state, kind, detail) in expected {
        let fault = fault(interpret_patiently(state));
        assert_eq!(fault.kind, kind, "{state}: {fault}");
        assert!(fault.detail.contains(detail), "{state}: {fault}");
    }
}

#[test]
fn what_the_sandbox_leaves_to_others_passes_it() {
    // The egress guard, the transport and the dispatcher refuse these.
    for mode in ["undeclared-host", "secret-in-text", "unknown-secret", "unknown-blob", "many-steps", "many-waits"] {
        assert!(prepare(mode).result.is_ok(), "{mode}");
    }
    assert!(matches!(interpret("many-steps").result, Ok(Step::Send { .. })));
    assert!(matches!(interpret("many-waits").result, Ok(Step::Wait { .. })));
}

#[test]
fn a_flood_of_log_lines_is_contained() {
    let called = prepare("log-flood");
    assert!(called.usage.cpu < Duration::from_millis(200), "{:?}", called.usage);
    if let Err(CallError::Broken(fault)) = called.result {
        assert_eq!(fault.kind, GuestFaultKind::Deadline);
    }
}

#[test]
fn a_guest_that_never_returns_is_stopped() {
    for fault in [fault(prepare("spin")), fault(interpret("spin-in-interpret"))] {
        assert_eq!(fault.kind, GuestFaultKind::Deadline);
        assert!(fault.detail.contains("no answer after 50 ms of CPU time"), "{fault}");
    }
}

#[test]
fn a_spinning_guest_is_stopped_soon_and_disturbs_no_other() {
    let spinning = thread::spawn(|| {
        let called = prepare("spin");
        assert!(called.usage.cpu < Duration::from_millis(150), "{:?}", called.usage);
        fault(called)
    });
    while !spinning.is_finished() {
        assert!(prepare("behave").result.is_ok());
    }
    assert_eq!(spinning.join().unwrap().kind, GuestFaultKind::Deadline);
}

#[test]
fn nothing_passes_from_one_call_to_the_next() {
    for mode in ["big-state", "trap", "behave"] {
        let _ = prepare(mode);
    }
    let (first, second) = (prepare("behave"), prepare("behave"));
    assert_eq!(first.result.unwrap(), second.result.unwrap());
    assert_eq!(first.usage.peak_memory, second.usage.peak_memory);
}

#[test]
fn memory_is_measured_and_bounded() {
    let called = prepare_patiently("grow");
    let limit = CallLimits::default().memory as u64;
    assert!((limit / 2..=limit).contains(&called.usage.peak_memory), "{:?}", called.usage);
}

#[test]
fn what_a_guest_is_given_is_bounded_too() {
    let large = "x".repeat(CallLimits::default().input);
    let Err(CallError::Judged(verdict)) = prepare(&large).result else { panic!("a large delivery was taken") };
    assert_eq!((verdict.disposition, verdict.unified_code.as_str()), (Disposition::RejectedPermanent, "too_large"));

    let reply = Reply::Http { status: 200, headers: Vec::new(), body: large.into(), cut: None };
    let called = FIXTURE.interpret(&context(), CONFIG, b"", &reply);
    let Err(CallError::Judged(verdict)) = called.result else { panic!("a large answer was taken") };
    assert_eq!((verdict.disposition, verdict.unified_code.as_str()), (Disposition::Unknown, "unreadable_answer"));
}

/// Every accepted message is within the limits of a call, however much it grows as JSON.
#[test]
fn the_largest_content_is_no_fault() {
    let webhook = admit(&file("webhook"));
    for (text, length) in [("x", 1), ("\"", 2), ("\u{1}", 6)] {
        let called = webhook.prepare(&context(), CONFIG, &[item(&text.repeat(MOST_CONTENT / length))]);
        println!("{text:?}: {:?}", called.usage);
        assert!(matches!(called.result, Ok(Step::Send { .. })), "{text:?}: {:?}", called.result.err());
    }
    let kv = |at: usize| Kv { name: format!("x-{at}"), value: "y".repeat(4096) };
    let headers: serde_json::Map<_, _> = (0..64).map(|at| (format!("z-{at}"), json!("z".repeat(2000)))).collect();
    let config = json!({"url": "https://example.org/hook", "headers": headers}).to_string();
    let many = Item { headers: (0..100).map(kv).collect(), ..item("hello") };
    assert!(matches!(webhook.prepare(&context(), &config, &[many]).result, Ok(Step::Send { .. })));
    let payload = Item { payload: Some("x".repeat(MOST_CONTENT)), ..item("") };
    assert!(matches!(webhook.prepare(&context(), CONFIG, &[payload]).result, Ok(Step::Send { .. })));
}

#[test]
fn more_deliveries_than_a_batch_holds_are_the_hosts_fault() {
    for items in [vec![], vec![item("a"), item("b")]] {
        let fault = fault(FIXTURE.prepare(&context(), CONFIG, &items));
        assert_eq!(fault.kind, GuestFaultKind::Host);
        assert!(!fault.kind.is_the_guests());
    }
}

#[test]
fn a_compiled_component_is_kept_and_a_damaged_one_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = || RuntimeSettings {
        cache: Some(CacheSettings { folder: folder.path().to_owned(), key: [7; 32] }),
        limits: CallLimits { live_instances: 1, ..CallLimits::default() },
    };
    let admission = || {
        let began = Instant::now();
        let component = Runtime::new(settings()).unwrap().admit(&file("webhook")).unwrap();
        assert!(component.prepare(&context(), CONFIG, &[item("hello")]).result.is_ok());
        began.elapsed()
    };
    let (compiled, kept) = (admission(), admission());
    println!("admitted in {compiled:?} compiled, {kept:?} from the cache");
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "artifact") {
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    admission();
}

#[test]
fn a_version_replaces_another_and_goes_back() {
    let registry = Registry::new();
    let (old, new) = (admit(&version(file("fixture"), b'1')), admit(&version(file("fixture"), b'2')));
    assert_ne!(old.digest(), new.digest());
    let serving = || registry.get("fixture").map(|component| component.digest().to_owned());

    registry.serve(Arc::clone(&old), None);
    let in_flight = registry.get("fixture").unwrap();
    registry.serve(Arc::clone(&new), Some(Arc::clone(&old)));
    assert_eq!(serving().as_deref(), Some(new.digest()));
    assert!(in_flight.interpret(&context(), CONFIG, b"", &accepted()).result.is_ok());

    registry.serve(Arc::clone(&old), Some(Arc::clone(&new)));
    assert_eq!(serving().as_deref(), Some(old.digest()));
    assert_eq!(registry.list()[0].previous.as_ref().unwrap().digest(), new.digest());
    assert!(registry.remove("fixture"));
    assert!(serving().is_none() && registry.list().is_empty());
}

/// Reports this number of faults of a tenant, and returns the last one's consequence.
fn faults(registry: &Registry, component: &Component, tenant: TenantId, count: usize) -> Option<Quarantined> {
    let report = || registry.report("fixture", component.digest(), tenant, false, Instant::now());
    (0..count).fold(None, |_, _| report())
}

#[test]
fn five_faults_in_a_row_bring_the_version_before_back() {
    let registry = Registry::new();
    let (old, new) = (admit(&version(file("fixture"), b'3')), admit(&version(file("fixture"), b'4')));
    registry.serve(Arc::clone(&new), Some(Arc::clone(&old)));
    let (one, other, now) = (TenantId::new(), TenantId::new(), Instant::now());
    let serving = |tenant| registry.get_for("fixture", tenant, now).unwrap().digest().to_owned();

    assert_eq!(faults(&registry, &new, one, 4), None);
    registry.report("fixture", new.digest(), one, true, now);
    assert_eq!(faults(&registry, &new, one, 4), None);
    let quarantined = faults(&registry, &new, one, 1).expect("the fifth in a row");
    assert!(matches!(quarantined.scope, QuarantineScope::Tenant(tenant, _) if tenant == one), "{quarantined:?}");
    assert_eq!(quarantined.restored.as_deref(), Some(old.digest()));
    assert_eq!((serving(one).as_str(), serving(other).as_str()), (old.digest(), new.digest()));

    faults(&registry, &new, other, 5);
    let quarantined = faults(&registry, &new, TenantId::new(), 5);
    let restored = Some(old.digest().to_owned());
    assert_eq!(
        quarantined,
        Some(Quarantined { digest: new.digest().to_owned(), scope: QuarantineScope::All, restored })
    );
    assert_eq!(registry.get("fixture").unwrap().digest(), old.digest());
    assert_eq!(registry.list()[0].quarantined, [new.digest()]);

    registry.serve(Arc::clone(&new), Some(old));
    assert_eq!((serving(one).as_str(), registry.list()[0].quarantined.len()), (new.digest(), 0));
}

#[test]
fn a_quarantined_version_without_another_leaves_nothing_in_service_until_it_is_said_to_serve() {
    let registry = Registry::new();
    registry.serve(Arc::clone(&FIXTURE), None);
    let one = TenantId::new();
    faults(&registry, &FIXTURE, one, 5);
    assert!(registry.get_for("fixture", one, Instant::now()).is_none() && registry.get("fixture").is_some());
    faults(&registry, &FIXTURE, TenantId::new(), 5);
    let last = faults(&registry, &FIXTURE, TenantId::new(), 5).map(|quarantined| quarantined.scope);
    assert_eq!(last, Some(QuarantineScope::All));
    assert!(registry.get("fixture").is_none());
    registry.serve(Arc::clone(&FIXTURE), None);
    assert!(registry.get_for("fixture", one, Instant::now()).is_some());
}

/// A guest that decodes a text as no other does learns a secret, and cannot pass it on.
#[test]
fn what_a_guest_says_does_not_hold_the_connections_secrets() {
    let canary = "canary-7f3e9a";
    let backwards: String = canary.chars().rev().collect();
    let reply = Reply::Http { status: 200, headers: vec![], body: backwards.into(), cut: None };
    let ctx = CallContext { redactor: Redactor::of([canary.as_bytes()]).into(), ..context() };
    let Ok(Step::Done(outcomes)) = FIXTURE.interpret(&ctx, CONFIG, b"tell", &reply).result else {
        panic!("it tells");
    };
    let [told] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(
        (told.message.as_str(), told.code.as_str(), told.external_id.as_deref()),
        ("it says ***", "***", Some("***"))
    );
    let fault = fault(FIXTURE.interpret(&ctx, CONFIG, b"tell-in-panic", &reply));
    assert!(fault.detail.contains("***") && !fault.detail.contains(canary), "{}", fault.detail);
    let (mut ctx, request) =
        callback("", r#"[{"kind":"read","code":"canary-7f3e9a","detail":{"a":"canary%2D7f3e9a"}}]"#);
    ctx.redactor = Redactor::of([canary.as_bytes()]).into();
    let receipt = &FIXTURE.parse_callback(&ctx, CONFIG, &request).result.unwrap().unwrap().receipts[0];
    assert_eq!((receipt.code.as_str(), receipt.detail.as_str()), ("***", r#"{"a":"***"}"#));
}
