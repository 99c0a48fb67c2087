//! A component's answer, descriptor and reports: every accepted one satisfies the assumptions of the rest of the
//! gateway.
#![no_main]

use angarium_domain::{
    provider::{Disposition, Judgement, Step},
    transmission::{HttpRequest, Kv, Method, Segment, Transmission},
};
use angarium_runtime::fuzzing::{check_descriptor, check_step};
use libfuzzer_sys::fuzz_target;

/// Separates two fields.
const BETWEEN: char = '\u{1f}';

fuzz_target!(|text: &str| {
    let fields: Vec<String> = text.split(BETWEEN).map(str::to_owned).collect();
    let field = |index: usize| fields.get(index).cloned().unwrap_or_default();
    let request = HttpRequest {
        method: Method::Post,
        url: field(0),
        headers: vec![Kv { name: field(1), value: field(2) }],
        body: vec![Segment::Text(field(3))],
        auth: Vec::new(),
        timeout_ms: None,
    };
    let transmission = Transmission::Http(Box::new(request));
    let mut send = Step::Send { transmission, state: field(4).into_bytes() };
    if check_step(&mut send)
        && let Step::Send { transmission: Transmission::Http(request), .. } = &send
    {
        let url = url::Url::parse(&request.url).expect("a URL that passed");
        assert!(["http", "https"].contains(&url.scheme()), "{url}");
        for header in &request.headers {
            assert!(!header.name.is_empty() && header.name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
            assert!(!header.value.contains(['\r', '\n', '\0']), "{header:?}");
        }
    }
    let judgement = Judgement {
        disposition: Disposition::RejectedPermanent,
        code: field(0),
        unified_code: field(1),
        message: field(2),
        external_id: Some(field(3)),
        retry_after_ms: field(4).parse().ok(),
        cost: None,
        units: None,
    };
    let mut done = Step::Done(vec![judgement]);
    if check_step(&mut done)
        && let Step::Done(judgements) = &done
    {
        for judgement in judgements {
            let id = judgement.external_id.as_deref().unwrap_or_default();
            for text in [&judgement.code, &judgement.unified_code, &judgement.message, id] {
                assert!(!text.contains('\0'), "PostgreSQL takes no NUL: {text:?}");
            }
        }
    }
    let texts: [String; 8] = std::array::from_fn(field);
    if let Some(descriptor) = check_descriptor(texts) {
        assert!(!descriptor.name.is_empty() && !descriptor.name.contains(['/', '\\', '\0']), "{descriptor:?}");
    }
});
