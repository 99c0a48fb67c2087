//! `/v1/message-jobs`, `PATCH /v1/messages/{id}` and the content of messages read back.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    answers::{Job, Seen},
    gateway::TestGateway,
    sink::Sink,
};

async fn scheduled(gateway: &TestGateway, reference: &str) -> String {
    let message = json!({"channel": "webhook", "content": {"payload": {"n": 1}}, "reference": reference,
        "send_at": "2099-01-01T00:00:00Z"});
    gateway.send(&message).await
}

async fn finished(gateway: &TestGateway, job: &Value) -> Seen<Job> {
    gateway.ended_job(job["id"].as_str().unwrap()).await
}

#[tokio::test]
async fn many_messages_are_canceled_by_a_filter_and_counted_first() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let mut campaign = Vec::new();
    for _ in 0..25 {
        campaign.push(scheduled(&gateway, "campaign").await);
    }
    let other = scheduled(&gateway, "other").await;
    let wanted = json!({"action": "cancel", "filter": {"reference": "campaign"}, "reason": "the offer has ended"});
    let counted = gateway.post("/v1/message-jobs?dry_run=true", &wanted).await.expect(200);
    assert_eq!(counted, json!({"matched": 25}));
    assert_eq!(gateway.message(&campaign[0]).await.state, "scheduled");
    let job = gateway.post("/v1/message-jobs", &wanted).await.expect(202);
    assert_eq!((&job["filter"]["reference"], &job["messages"]), (&json!("campaign"), &Value::Null), "{job}");
    let job = finished(&gateway, &job).await;
    assert_eq!((job.matched, job.done, job.skipped), (25, 25, 0), "{job}");
    for id in &campaign {
        assert_eq!(gateway.message(id).await.state, "canceled");
    }
    assert_eq!(gateway.message(&other).await.state, "scheduled");
    let audit = gateway.get(&format!("/v1/audit?subject={}", campaign[3])).await;
    assert_eq!(audit["data"][0]["action"], "message.canceled", "{audit}");
    assert_eq!(audit["data"][0]["actor"]["kind"], "job", "{audit}");
}

#[tokio::test]
async fn listed_messages_whose_state_does_not_allow_it_are_skipped() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let waiting = scheduled(&gateway, "a").await;
    let sent = gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}})).await;
    gateway.settled(&sent).await;
    let wanted = json!({"action": "cancel", "messages": [waiting, sent, waiting], "reason": "by hand"});
    let job = gateway.post("/v1/message-jobs", &wanted).await.expect(202);
    let job = finished(&gateway, &job).await;
    assert_eq!((job.done, job.skipped), (1, 1), "{job}");
    assert_eq!((&job["filter"], &job["messages"]), (&Value::Null, &json!([waiting, sent])), "{job}");
    gateway.post(&format!("/v1/message-jobs/{}/cancel", job["id"].as_str().unwrap()), &json!({})).await.expect(409);
}

#[tokio::test]
async fn a_job_keeps_to_its_rate_and_limit_and_is_stopped() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    for _ in 0..6 {
        scheduled(&gateway, "campaign").await;
    }
    let mut wanted = json!({"action": "cancel", "filter": {"state": "scheduled"}, "limit": 2, "reason": "a few"});
    let job = gateway.post("/v1/message-jobs", &wanted).await.expect(202);
    let job = finished(&gateway, &job).await;
    assert_eq!((job.matched, job.done, &job["limit"]), (6, 2, &json!(2)), "{job}");

    wanted["limit"] = json!(null);
    wanted["rate_per_second"] = json!(1);
    let slow = gateway.post("/v1/message-jobs", &wanted).await.expect(202);
    let path = format!("/v1/message-jobs/{}", slow["id"].as_str().unwrap());
    let stopped = gateway.post(&format!("{path}/cancel"), &json!({})).await.expect(200);
    assert_eq!((&stopped["state"], &stopped["rate_per_second"]), (&json!("canceled"), &json!(1)), "{stopped}");
    assert!(stopped["done"].as_i64().unwrap() < 4, "{stopped}");
    let left = gateway.list("/v1/messages?state=scheduled").await.len() as i64;
    let done = gateway.get(&path).await["done"].as_i64().unwrap();
    assert_eq!(left, 4 - done, "what it has done stays, and nothing follows");
}

#[tokio::test]
async fn a_replay_is_a_job_and_other_jobs_are_no_replays() {
    let gateway = TestGateway::start().await;
    let job = json!({"action": "retry", "filter": {"state": "failed"}, "reason": "x"});
    let job = gateway.post("/v1/message-jobs", &job).await.expect(202);
    let replay = gateway.post("/v1/dead-letters/replays", &json!({"filter": {}})).await.expect(202);
    let (job, replay) = (finished(&gateway, &job).await, finished(&gateway, &replay).await);
    assert_eq!((replay.action.as_str(), &replay["rate_per_second"]), ("replay", &json!(50)), "{replay}");
    assert_eq!(json!(gateway.list("/v1/message-jobs").await), json!([replay, job]));
    assert_eq!(json!(gateway.list("/v1/dead-letters/replays").await), json!([replay]));
    let path = format!("/v1/dead-letters/replays/{}", job["id"].as_str().unwrap());
    gateway.call(Method::GET, &path, None).await.expect(404);
    gateway.post(&format!("{path}/cancel"), &json!({})).await.expect(404);
}

#[tokio::test]
async fn a_job_that_would_meet_every_message_or_none_is_refused() {
    let gateway = TestGateway::start().await;
    let refused = async |body: Value, pointer: &str| {
        let answer = gateway.post("/v1/message-jobs", &body).await.expect(422);
        assert!(answer["errors"].to_string().contains(pointer), "{pointer}: {answer}");
    };
    refused(json!({"action": "cancel", "reason": "x"}), "/filter").await;
    refused(json!({"action": "cancel", "filter": {}, "reason": "x"}), "/filter").await;
    refused(json!({"action": "cancel", "filter": {"state": "sent"}, "messages": ["msg_1"], "reason": "x"}), "/filter")
        .await;
    refused(json!({"action": "cancel", "messages": ["msg_1"], "reason": "x"}), "/messages/0").await;
    for (action, state) in [("retry", "sent"), ("retry", "delivered"), ("cancel", "failed"), ("cancel", "canceled")] {
        refused(json!({"action": action, "filter": {"state": state}, "reason": "x"}), "/filter/state").await;
    }
    let long = r#"{"action": "retry", "filter": {"state": "failed"}, "limit": 100000000000000000000, "reason": "x"}"#;
    refused(serde_json::from_str(long).unwrap(), "1000000000").await;
    refused(json!({"action": "resolve", "filter": {"state": "unknown"}, "reason": "x"}), "/resolution").await;
    refused(json!({"action": "retry", "filter": {"connection": "nobody"}, "reason": "x"}), "/filter/connection").await;
    let key = gateway.key_with("messages:write");
    let body = json!({"action": "cancel", "filter": {"recipient": "ann@example.org"}, "reason": "x"});
    gateway.call_as(&key, Method::POST, "/v1/message-jobs?dry_run=true", Some(&body)).await.expect(403);
}

#[tokio::test]
async fn a_waiting_message_is_moved_and_one_that_was_sent_is_not() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let id = scheduled(&gateway, "a").await;
    let path = format!("/v1/messages/{id}");
    let later = json!({"send_at": "2099-06-01T00:00:00Z", "priority": "high"});
    let moved = gateway.call(Method::PATCH, &path, Some(&later)).await.expect(200);
    assert_eq!((&moved["send_at"], &moved["priority"]), (&json!("2099-06-01T00:00:00Z"), &json!("high")));
    let bad = json!({"expires_at": "2099-01-01T00:00:00Z"});
    let refused = gateway.call(Method::PATCH, &path, Some(&bad)).await.expect(422);
    assert!(refused["errors"].to_string().contains("expires_at"), "{refused}");
    gateway.call(Method::PATCH, &path, Some(&json!({"send_at": null}))).await.expect(200);
    gateway.settled(&id).await;
    assert_eq!(sink.arrived(1).await.len(), 1);
    gateway.call(Method::PATCH, &path, Some(&later)).await.expect(409);
    let events = gateway.get(&format!("{path}/events")).await;
    assert!(events.to_string().contains("message.rescheduled"), "{events}");
    let audit = gateway.get(&format!("/v1/audit?subject={id}")).await;
    assert!(audit.to_string().contains("2099-06-01"), "{audit}");
}

#[tokio::test]
async fn a_move_that_changes_nothing_is_none() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let id = scheduled(&gateway, "a").await;
    let path = format!("/v1/messages/{id}");
    gateway.call(Method::PATCH, &path, Some(&json!({}))).await.expect(422);
    gateway.call(Method::PATCH, &path, Some(&json!({"send_at": "2099-01-01T00:00:00.000000123Z"}))).await.expect(200);
    let audit = gateway.get(&format!("/v1/audit?subject={id}")).await;
    assert_eq!(audit["data"], json!([]), "{audit}");
    let later = json!({"send_at": "2099-06-01T00:00:00.123456789Z"});
    let moved = gateway.call(Method::PATCH, &path, Some(&later)).await.expect(200);
    let audit = gateway.get(&format!("/v1/audit?subject={id}")).await;
    assert_eq!(audit["data"][0]["after"]["send_at"], moved["send_at"], "{audit}");
    gateway.post(&format!("{path}/cancel"), &json!({})).await.expect(200);
    let refused = gateway.call(Method::PATCH, &path, Some(&later)).await.expect(409);
    assert!(refused["detail"].to_string().contains("canceled"), "{refused}");
}

#[tokio::test]
async fn content_is_read_back_with_its_attachments_and_the_reading_is_audited() {
    let gateway = TestGateway::start().await;
    let config = json!({"host": "127.0.0.1", "port": 9, "tls": "none", "from": "shop@example.com"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let file: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &file);
    let mail = json!({"channel": "email", "to": "ann@example.org", "connection": "mail", "send_at": "2099-01-01T00:00:00Z",
        "content": {"subject": "Your invoice", "text": "Thank you.",
            "attachments": [{"name": "a.bin", "media_type": "application/pdf", "content": encoded}]}});
    let id = gateway.send(&mail).await;
    let content = gateway.get(&format!("/v1/messages/{id}/content")).await;
    let part = &content["parts"][0];
    assert_eq!((&part["to"], &part["content"]["subject"]), (&json!("ann@example.org"), &json!("Your invoice")));
    assert_eq!((&part["attachments"][0]["name"], &part["attachments"][0]["size"]), (&json!("a.bin"), &json!(600_000)));
    let url = gateway.url(&format!("/v1/messages/{id}/attachments/0/0"));
    let answer = reqwest::Client::new().get(url).bearer_auth(&gateway.key).send().await.unwrap();
    assert_eq!(answer.headers()["content-disposition"], "attachment");
    assert_eq!(answer.bytes().await.unwrap(), file);
    for none in ["0/1", "0/+0", "00/0", "0/-1", "16/0", "x/y"] {
        let answer =
            gateway.call(Method::GET, &format!("/v1/messages/{id}/attachments/{none}"), None).await.expect(404);
        assert!(answer["detail"].to_string().contains("attachment"), "{none}: {answer}");
    }
    let audit = gateway.get(&format!("/v1/audit?subject={id}")).await;
    assert!(!audit.to_string().contains("a.bin"), "the entry outlasts the content: {audit}");
    let read = |entry: &&Value| entry["action"] == "message.content_read";
    assert_eq!(audit["data"].as_array().unwrap().iter().filter(read).count(), 2, "{audit}");
    let key = gateway.key_with("messages:read");
    gateway.call_as(&key, Method::GET, &format!("/v1/messages/{id}/content"), None).await.expect(403);
    let other = gateway.key_of("two", "content:read");
    gateway.call_as(&other, Method::GET, &format!("/v1/messages/{id}/content"), None).await.expect(404);
}
