//! Bad input of every kind gets a problem that names each bad field.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::gateway::{Answer, TestGateway, client};

/// `pointer:code` of each bad field, in order.
#[track_caller]
fn fields(answer: Answer, status: u16) -> Vec<String> {
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{}", answer.body);
    let body = answer.expect(status);
    for member in ["type", "title", "status", "detail", "code", "request_id", "source"] {
        assert!(!body[member].is_null(), "no {member} in {body}");
    }
    listed(&body)
}

fn listed(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().expect("a list of errors").iter();
    let mut fields: Vec<_> =
        errors.map(|it| format!("{}:{}", it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn every_bad_field_is_named_at_once() {
    let gateway = TestGateway::start().await;
    let shape = json!({"chanel": "email", "to": 7, "priority": "soon", "content": {"cc": "x", "colour": 1}});
    assert_eq!(
        fields(gateway.post("/v1/messages", &shape).await, 422),
        [
            "/chanel:unknown_field",
            "/channel:missing",
            "/content/cc:wrong_type",
            "/content/colour:unknown_field",
            "/priority:not_a_choice",
            "/to:wrong_type",
        ]
    );
    let meaning = json!({"channel": "email", "to": "a@b\r\nBcc: v@x", "expires_at": "2020-01-01T00:00:00Z",
        "content": {"subject": "x\r\nBcc: v@x", "headers": {"X-A": "1\r\n2"}, "attachments":
            [{"name": "a", "media_type": "text/plain", "content": "?"}]}});
    assert_eq!(
        fields(gateway.post("/v1/messages", &meaning).await, 422),
        [
            "/content/attachments/0/content:not_base64",
            "/content/headers/X-A:wrong_format",
            "/content/subject:control_character",
            "/expires_at:too_early",
            "/to:control_character",
        ]
    );
}

#[tokio::test]
async fn form_and_meaning_are_checked_together() {
    let gateway = TestGateway::start().await;
    let body = json!({"to": "ann", "channel": "email", "priority": "loud", "send_at": "soon", "nope": 1,
        "expires_at": "2020-01-01T00:00:00Z", "content": {"subject": 7, "cc": [7, "a@example.org", "y"],
            "attachments": [{"name": "a"}, {"name": "b/c", "media_type": "text/plain", "content": ""}]}});
    let every = [
        "/content/attachments/0/content:missing",
        "/content/attachments/0/media_type:missing",
        "/content/attachments/1/name:wrong_format",
        "/content/cc/0:wrong_type",
        "/content/cc/2:wrong_format",
        "/content/subject:wrong_type",
        "/expires_at:too_early",
        "/nope:unknown_field",
        "/priority:not_a_choice",
        "/send_at:wrong_format",
        "/to:wrong_format",
    ];
    let answer = gateway.post("/v1/messages", &body).await;
    let priority = answer.body["errors"].as_array().unwrap().iter().find(|it| it["pointer"] == "/priority").unwrap();
    assert_eq!(priority["detail"], "must be one of `low`, `normal`, `high`, `urgent`");
    assert_eq!(fields(answer, 422), every);

    let good = json!({"to": "https://example.org", "channel": "webhook"});
    let batch = gateway.post("/v1/messages/batch", &json!({"messages": [body, good]})).await.expect(200);
    assert_eq!(listed(&batch["data"][0]["error"]), every);
    assert_eq!(listed(&batch["data"][1]["error"]), ["/channel:no_route"]);

    // A member that was cut out is not reported as missing, and a missing one is reported once.
    let body = json!({"to": {"adress": "x"}, "expires_at": "2020-01-01T00:00:00Z", "channel": 7});
    let found = fields(gateway.post("/v1/messages", &body).await, 422);
    assert_eq!(
        found,
        ["/channel:wrong_type", "/expires_at:too_early", "/to/address:missing", "/to/adress:unknown_field"]
    );
    assert_eq!(fields(gateway.post("/v1/messages", &json!({})).await, 422), ["/channel:missing"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_a_problem_too() {
    let gateway = TestGateway::start().await;
    let client = client();
    let send = async |method: Method, path: &str, kind: &str, body: String| -> (u16, Value) {
        let request = client.request(method, gateway.url(path)).bearer_auth(&gateway.key);
        let answer = request.header("content-type", kind).body(body).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        assert!(answer.headers().contains_key("x-request-id"));
        (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    };
    let json = "application/json";
    for (method, path, kind, body, status, code) in [
        (Method::POST, "/v1/messages", json, "{".to_owned(), 400, "malformed_request"),
        (Method::POST, "/v1/messages", json, "[".repeat(5000), 400, "malformed_request"),
        (Method::POST, "/v1/messages", json, "\"\\ud800\"".to_owned(), 400, "malformed_request"),
        (Method::POST, "/v1/messages", "text/plain", "{}".to_owned(), 415, "unsupported_media_type"),
        (Method::POST, "/v1/messages", json, " ".repeat(17 << 20), 413, "body_too_large"),
        (Method::PUT, "/v1/messages", json, "{}".to_owned(), 405, "method_not_allowed"),
        (Method::GET, "/v1/nothing", json, String::new(), 404, "not_found"),
        (Method::GET, "/v1/messages/%FF", json, String::new(), 404, "not_found"),
        (Method::GET, "/v1/connections/a%00b", json, String::new(), 404, "not_found"),
        (Method::GET, "/v1/messages?limit=0", json, String::new(), 400, "invalid_parameter"),
        (Method::GET, "/v1/messages?page=2", json, String::new(), 400, "invalid_parameter"),
        (Method::GET, "/v1/messages?reference=a%00", json, String::new(), 400, "invalid_parameter"),
        (Method::GET, "/v1/messages?cursor=x", json, String::new(), 400, "invalid_parameter"),
        (Method::GET, "/v1/messages?state=lost", json, String::new(), 400, "invalid_parameter"),
    ] {
        let shown = format!("{method} {path} {}", &body[..body.len().min(20)]);
        let (got, problem) = send(method, path, kind, body).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{shown}: {problem}");
    }
}

#[tokio::test]
async fn a_request_keeps_its_id() {
    let gateway = TestGateway::start().await;
    let answer = gateway.post_with("/v1/messages", &[("x-request-id", "mine-7")], &json!({})).await;
    assert_eq!(answer.headers["x-request-id"], "mine-7");
    assert_eq!(answer.expect(422)["request_id"], "mine-7");
}

#[tokio::test]
async fn a_channel_without_a_route_says_so() {
    let gateway = TestGateway::start().await;
    let answer = gateway.post("/v1/messages", &json!({"channel": "webhook"})).await;
    assert_eq!(fields(answer, 422), ["/channel:no_route"]);
    let answer = gateway.post("/v1/messages", &json!({"channel": "webhook", "connection": "nobody"})).await;
    assert_eq!(fields(answer, 422), ["/connection:unknown_connection"]);
}
