//! Hostile scripts end within their memory, and leave nothing behind.

use serde_json::json;

use super::memory::peak;
use crate::{
    rules::live,
    support::{gateway::TestGateway, messages::hook, sink::Sink},
};

/// The most additional memory of a node, in bytes: several runs at a time, each with the need of its last operation.
const MOST: usize = 256 << 20;

const SINCE: &str = "2020-01-01T00:00:00Z";

/// Functions that hold eight copies of themselves, in each turn: the language has no such function.
const CURRY: &str = "fn admit(message) { let f=|a|{a}; loop { f=f.curry(f,f,f,f,f,f,f,f); } }";

/// Sources that hold all that they can get.
fn greedy() -> Vec<String> {
    let text = "let text = \"\"; text.pad(60000, \"x\");";
    let names: String = (0..40).map(|nth| format!("let v{nth} = text + n;")).collect();
    let nested = "let f = || text; let a = []; a.pad(1000, f); let g = || a; let b = []; b.pad(1000, g);";
    vec![
        format!("fn admit(message) {{ {text} let map = #{{}}; for n in 0..2000 {{ map[text + n] = n; }} map }}"),
        format!(
            "fn admit(message) {{ {text} let list = []; for n in 0..1000 {{ let it = text + n; list.push(|| it); }} }}"
        ),
        format!("fn f(n, text) {{ {names} if n < 12 {{ f(n + 1, text) }} }} fn admit(message) {{ {text} f(0, text) }}"),
        format!("fn admit(message) {{ {text} {nested} throw b }}"),
        format!("fn admit(message) {{ {text} {nested} `${{b}}` }}"),
    ]
}

async fn gateway_with_a_message() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    (gateway, sink)
}

#[tokio::test]
async fn a_script_that_holds_copies_of_itself_is_refused_everywhere() {
    let (gateway, _sink) = gateway_with_a_message().await;
    let before = peak(&gateway, 0);
    let case = json!({"name": "any", "hook": "admit", "message": {"channel": "sms"}, "expect": {"action": "allow"}});
    let version = json!({"source": CURRY, "cases": [case]});
    let backtest = json!({"script": {"name": "gate", "source": CURRY}, "since": SINCE});
    for (path, body) in [("/v1/scripts/gate/versions", version), ("/v1/rules/backtest", backtest)] {
        let refused = gateway.post(path, &body).await.problem(422);
        assert_eq!(refused.errors[0].code, "does_not_compile", "{refused}");
    }
    assert!(peak(&gateway, 0) - before < MOST);
}

#[tokio::test]
async fn a_script_that_holds_all_it_can_get_ends_within_its_memory() {
    let (gateway, _sink) = gateway_with_a_message().await;
    let before = peak(&gateway, 0);
    let case = json!({"name": "any", "hook": "admit", "message": {"channel": "sms"}, "expect": {"action": "hold"}});
    for source in greedy() {
        let version = json!({"source": source, "cases": [case]});
        let refused = gateway.post("/v1/scripts/greedy/versions", &version).await.problem(422);
        assert_eq!(refused.errors[0].code, "case_failed", "{refused}");
        let backtest = json!({"script": {"name": "gate", "source": source}, "since": SINCE});
        let answer = gateway.post("/v1/rules/backtest", &backtest).await.expect(200);
        assert!(answer["looked_at"].as_u64() >= Some(1), "{answer}");
        live(&gateway, "gate", &source).await;
        gateway.post("/v1/rules/evaluate", &hook()).await.expect(200);
        gateway.send(&hook()).await;
    }
    // The limit is named.
    let version = json!({"source": greedy()[0], "cases": [case]});
    let refused = gateway.post("/v1/scripts/greedy/versions", &version).await.problem(422);
    assert!(refused.errors[0].detail.contains("it uses too much memory"), "{refused}");
    assert!(peak(&gateway, 0) - before < MOST);
}
