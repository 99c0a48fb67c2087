//! Messages with several channels: one follows when the previous one failed or had no receipt, or all go at once.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    answers::Attempt,
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway, client},
    sink::{Reply, Sink},
};

const TOKEN: &str = "t0ken-of-the-service";

/// A gateway whose mails and texts go to a sink with callbacks.
struct Scene {
    gateway: TestGateway,
    sink: Sink,
}

impl Scene {
    async fn start() -> Self {
        Self::with("", json!({"type": "none"})).await
    }

    async fn with(config: &str, retry: Value) -> Self {
        let (gateway, sink) = (TestGateway::with(1, config).await, Sink::start().await);
        for (uid, channel) in [("mail", "email"), ("texts", "sms")] {
            let config = json!({"url": sink.url(&format!("/{uid}"))});
            gateway.connection(uid, "fixture", config, json!({"token": TOKEN})).await;
            gateway.route(channel, json!({"candidates": [{"connection": uid}], "retry": retry})).await;
        }
        Self { gateway, sink }
    }

    fn mail_is_refused(&self) {
        self.sink.answers("/mail", [Reply::status(400)]);
    }

    /// Sends the service's report about a delivery.
    async fn says(&self, connection: &str, kind: &str, delivery: &str) {
        let url = self.gateway.get(&format!("/v1/connections/{connection}")).await["callback_url"].clone();
        let body = json!([{"kind": kind, "delivery": delivery}]).to_string();
        let request = client().post(url.as_str().unwrap()).header("x-token", TOKEN).body(body);
        assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    }

    async fn view(&self, id: &str) -> Value {
        self.gateway.get(&format!("/v1/messages/{id}")).await
    }

    /// The message once its channels stand like this.
    async fn stands(&self, id: &str, expected: &[&str]) -> Value {
        eventually(&format!("{id} as {expected:?}"), || async {
            let view = self.view(id).await;
            (states(&view) == expected).then_some(view)
        })
        .await
    }

    async fn events(&self, id: &str) -> Vec<String> {
        self.gateway.event_types(id).await
    }

    /// Returns the ledger's record of each attempt: its channel, trigger, and fallback reason.
    async fn attempts(&self, id: &str) -> Vec<String> {
        let list = self.gateway.attempt_list(id).await;
        let reason = |it: &Attempt| it.fallback_reason.clone().unwrap_or_else(|| "-".to_owned());
        list.iter().map(|it| format!("{} {} {}", it.channel, it.trigger, reason(it))).collect()
    }

    /// Asserts that the figures are those of the ledger.
    async fn counts_agree(&self) {
        let totals = self.gateway.get("/v1/stats").await["totals"].clone();
        let number = async |sql: &str| self.gateway.db.sql(sql).await.trim().parse::<i64>().unwrap();
        let further = "select count(*) from delivery where begun_at is not null and id <> message_id";
        assert_eq!(totals["further"], number(further).await, "{totals}");
        let open = "select count(*) from delivery where state = 'queued'";
        assert_eq!(totals["open"], number(open).await, "{totals}");
        let channels = self.gateway.get("/v1/stats?group_by=channel").await;
        for group in channels["groups"].as_array().unwrap() {
            assert!(group["totals"]["open"].as_i64().unwrap() >= 0, "{group}");
        }
    }
}

fn states(view: &Value) -> Vec<&str> {
    view["deliveries"].as_array().unwrap().iter().map(|it| it["state"].as_str().unwrap()).collect()
}

/// A mail, then a text.
fn both() -> Value {
    json!({"channels": [
        {"channel": "email", "to": "ann@example.org", "content": {"text": "by mail"}},
        {"channel": "sms", "to": "+46700000001", "content": {"text": "by text"}},
    ]})
}

fn with(more: Value) -> Value {
    let mut message = both();
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    message
}

/// The delivery of a leg: its number is the last digit.
fn leg(message: &str, number: u8) -> String {
    format!("dlv_{}{number:x}", &message[4..35])
}

#[tokio::test]
async fn a_channel_that_fails_is_followed_at_once_by_the_next() {
    let scene = Scene::start().await;
    scene.mail_is_refused();
    let id = scene.gateway.send(&both()).await;
    let view = scene.stands(&id, &["failed", "sent"]).await;
    assert_eq!((&view["state"], &view["delivery"]["id"]), (&json!("sent"), &json!(leg(&id, 1))));
    assert_eq!((&view["channel"], &view["mode"], &view["wants"]), (&json!("email"), &json!("first"), &json!("sent")));
    assert_eq!(scene.attempts(&id).await, ["email scheduled -", "sms fallback channel_failed"]);
    let told = ["message.accepted", "message.failed", "message.channel_fallback", "message.sent"];
    assert_eq!(scene.events(&id).await, told);
    let [mail] = &scene.sink.received_at("/mail")[..] else { panic!("one mail") };
    let [text] = &scene.sink.received_at("/texts")[..] else { panic!("one text") };
    assert_eq!((&mail.body[..], &text.body[..]), (&b"by mail"[..], &b"by text"[..]));
    assert_ne!(mail.header("x-delivery-key"), text.header("x-delivery-key"));
    let decisions = scene.gateway.get(&format!("/v1/messages/{id}/decision")).await["decisions"].clone();
    assert_eq!((&decisions[1]["leg"], &decisions[1]["channel"]), (&json!(1), &json!("sms")));
    scene.counts_agree().await;
}

#[tokio::test]
async fn what_was_sent_is_enough_unless_the_message_wants_more() {
    let scene = Scene::start().await;
    let id = scene.gateway.send(&both()).await;
    scene.stands(&id, &["sent", "accepted"]).await;
    scene.says("mail", "bounced", &leg(&id, 0)).await;
    let view = scene.stands(&id, &["bounced", "accepted"]).await;
    assert_eq!(view["state"], "bounced");
    assert!(scene.sink.received_at("/texts").is_empty());

    let id = scene.gateway.send(&with(json!({"wants": "delivered"}))).await;
    scene.stands(&id, &["sent", "accepted"]).await;
    scene.says("mail", "bounced", &leg(&id, 0)).await;
    scene.stands(&id, &["bounced", "sent"]).await;
    assert_eq!(scene.attempts(&id).await[1], "sms fallback channel_failed");
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_missing_receipt_moves_on_after_its_window_and_not_before() {
    let scene = Scene::start().await;
    let began = std::time::Instant::now();
    let id = scene.gateway.send(&with(json!({"wants": "delivered", "receipt_window": 2}))).await;
    let waits = scene.stands(&id, &["sent", "accepted"]).await;
    assert!(waits["deliveries"][0]["receipt_until"].is_string(), "{waits}");
    let purge = format!("/v1/messages/{id}/content");
    scene.gateway.call(Method::DELETE, &purge, None).await.expect(409);
    let view = scene.stands(&id, &["sent", "sent"]).await;
    assert!(began.elapsed().as_secs() >= 2);
    assert_eq!(view["state"], "sent");
    assert_eq!(scene.attempts(&id).await, ["email scheduled -", "sms fallback no_receipt"]);
    assert_eq!(scene.gateway.db.sql("select count(*) from receipt_watch").await.trim(), "0");
    scene.gateway.call(Method::DELETE, &purge, None).await.expect(200);
    assert_eq!(states(&scene.view(&id).await), ["sent", "sent"], "what happened stays");
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_receipt_in_time_stops() {
    let scene = Scene::start().await;
    let id = scene.gateway.send(&with(json!({"wants": "delivered", "receipt_window": 600}))).await;
    scene.stands(&id, &["sent", "accepted"]).await;
    scene.says("mail", "delivered", &leg(&id, 0)).await;
    let view = scene.stands(&id, &["delivered", "accepted"]).await;
    assert_eq!(view["state"], "delivered");
    assert_eq!(scene.gateway.db.sql("select count(*) from receipt_watch").await.trim(), "0");
    assert!(scene.sink.received_at("/texts").is_empty());
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_late_receipt_closes_what_still_waits() {
    let scene = Scene::with("", json!({"type": "linear", "delay_ms": 600_000, "max_attempts": 5})).await;
    scene.sink.answers("/texts", [Reply::status(503)]);
    let id = scene.gateway.send(&with(json!({"wants": "delivered", "receipt_window": 1}))).await;
    eventually("the wait for the second try of the text", || async {
        (scene.view(&id).await["deliveries"][1]["attempts"] == 1).then_some(())
    })
    .await;
    scene.says("mail", "delivered", &leg(&id, 0)).await;
    let view = scene.stands(&id, &["delivered", "canceled"]).await;
    assert_eq!((&view["state"], &view["deliveries"][1]["code"]), (&json!("delivered"), &json!("superseded")));
    assert_eq!(scene.gateway.db.sql("select count(*) from queue").await.trim(), "0");
    assert_eq!(scene.events(&id).await.last().unwrap(), "message.channel_superseded");
    scene.counts_agree().await;
}

#[tokio::test]
async fn all_channels_go_at_once_and_the_worst_speaks_for_them() {
    let scene = Scene::start().await;
    let id = scene.gateway.send(&with(json!({"mode": "all"}))).await;
    assert_eq!(scene.stands(&id, &["sent", "sent"]).await["state"], "sent");
    assert_eq!(scene.attempts(&id).await.len(), 2);

    scene.mail_is_refused();
    let id = scene.gateway.send(&with(json!({"mode": "all"}))).await;
    let view = scene.stands(&id, &["failed", "sent"]).await;
    assert_eq!((&view["state"], &view["delivery"]["id"]), (&json!("failed"), &json!(leg(&id, 0))));
    for (filter, expected) in [("state=failed", 1), ("state=sent", 1), ("channel=sms", 2), ("channel=webhook", 0)] {
        let list = scene.gateway.get(&format!("/v1/messages?{filter}")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), expected, "{filter}: {list}");
    }

    scene.sink.answers("/mail", [Reply::status(200)]);
    let retry = format!("/v1/messages/{id}/retry");
    assert_eq!(scene.gateway.post(&retry, &json!({})).await.expect(202)["state"], "queued");
    scene.stands(&id, &["sent", "sent"]).await;
    assert_eq!(scene.sink.received_at("/texts").len(), 2, "what went well is not sent again");
    scene.gateway.post(&retry, &json!({})).await.expect(409);
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_channel_is_given_up_after_its_timeout() {
    let scene = Scene::with("", json!({"type": "linear", "delay_ms": 3_000, "max_attempts": 100})).await;
    scene.sink.answers("/mail", [Reply::status(503)]);
    let mut message = both();
    message["channels"][0]["timeout"] = json!(2);
    let id = scene.gateway.send(&message).await;
    scene.stands(&id, &["expired", "sent"]).await;
    assert_eq!(scene.sink.received_at("/mail").len(), 1, "the second try would have come too late");
    assert_eq!(scene.attempts(&id).await, ["email scheduled -", "sms fallback channel_failed"]);
}

#[tokio::test]
async fn a_leg_without_anybody_to_ask_is_followed_too_and_an_expired_message_by_nobody() {
    let scene = Scene::start().await;
    scene.gateway.call(Method::PATCH, "/v1/connections/mail", Some(&json!({"enabled": false}))).await.expect(200);
    let id = scene.gateway.send(&both()).await;
    scene.stands(&id, &["unroutable", "sent"]).await;

    scene.gateway.call(Method::PATCH, "/v1/connections/mail", Some(&json!({"enabled": true}))).await.expect(200);
    scene.sink.answers("/mail", [Reply::status(400).after(std::time::Duration::from_millis(1_500))]);
    let expires = angarium::clock::now() + jiff::SignedDuration::from_secs(1);
    let id = scene.gateway.send(&with(json!({"expires_at": expires.to_string()}))).await;
    let view = scene.stands(&id, &["failed", "accepted"]).await;
    assert_eq!(view["state"], "failed");
}

#[tokio::test]
async fn the_same_key_is_one_message_with_all_its_channels() {
    let scene = Scene::start().await;
    scene.mail_is_refused();
    let headers = [("idempotency-key", "order-1")];
    let first = scene.gateway.post_with("/v1/messages", &headers, &both()).await.expect(202);
    assert_eq!(states(&first), ["queued", "accepted"]);
    let id = first["id"].as_str().unwrap();
    scene.stands(id, &["failed", "sent"]).await;
    let again = scene.gateway.post_with("/v1/messages", &headers, &both()).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect(202), first);
    let mut other = both();
    other["channels"][1]["content"]["text"] = json!("another text");
    scene.gateway.post_with("/v1/messages", &headers, &other).await.expect(422);
    assert_eq!(scene.sink.received().len(), 2);
}

#[tokio::test]
async fn a_cancel_stops_every_channel_for_good() {
    let scene = Scene::start().await;
    for mode in ["first", "all"] {
        let planned = with(json!({"mode": mode, "send_at": "2099-01-01T00:00:00Z"}));
        let id = scene.gateway.send(&planned).await;
        let expected = if mode == "all" { ["scheduled", "scheduled"] } else { ["scheduled", "accepted"] };
        let view = scene.view(&id).await;
        assert_eq!((&view["state"], states(&view)), (&json!("scheduled"), expected.to_vec()));
        let cancel = format!("/v1/messages/{id}/cancel");
        let canceled = scene.gateway.post(&cancel, &json!({})).await.expect(200);
        assert_eq!((&canceled["state"], states(&canceled)), (&json!("canceled"), vec!["canceled", "canceled"]));
        scene.gateway.post(&cancel, &json!({})).await.expect(200);
    }
    // A sent message that waits for a receipt: no other channel follows.
    let id = scene.gateway.send(&with(json!({"wants": "delivered"}))).await;
    scene.stands(&id, &["sent", "accepted"]).await;
    let stopped = scene.gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    assert_eq!((&stopped["state"], states(&stopped)), (&json!("sent"), vec!["sent", "canceled"]));
    scene.says("mail", "failed", &leg(&id, 0)).await;
    scene.stands(&id, &["failed", "canceled"]).await;
    assert_eq!(scene.gateway.db.sql("select count(*) from queue").await.trim(), "0");
    assert!(scene.sink.received_at("/texts").is_empty());
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_person_tries_the_last_channel_again_or_the_one_that_they_name() {
    let scene = Scene::start().await;
    scene.mail_is_refused();
    scene.sink.answers("/texts", [Reply::status(400)]);
    let id = scene.gateway.send(&both()).await;
    assert_eq!(scene.stands(&id, &["failed", "failed"]).await["state"], "failed");
    scene.gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    eventually("another text", || async { (scene.sink.received_at("/texts").len() == 2).then_some(()) }).await;
    scene.stands(&id, &["failed", "failed"]).await;
    scene.sink.answers("/mail", [Reply::status(200)]);
    scene.gateway.post(&format!("/v1/messages/{id}/retry?leg=0"), &json!({})).await.expect(202);
    assert_eq!(scene.stands(&id, &["sent", "failed"]).await["state"], "sent");
    scene.gateway.post(&format!("/v1/messages/{id}/retry?leg=1"), &json!({})).await.expect(409);
    scene.gateway.post(&format!("/v1/messages/{id}/retry?leg=16"), &json!({})).await.expect(400);
    assert_eq!(scene.attempts(&id).await.last().unwrap(), "email manual -");
    scene.counts_agree().await;
}

#[tokio::test]
async fn a_dry_run_shows_every_channel() {
    let scene = Scene::start().await;
    let shown = scene.gateway.post("/v1/messages?dry_run=true", &both()).await.expect(200);
    let legs = shown["legs"].as_array().unwrap();
    assert_eq!(legs.len(), 2);
    assert_eq!((&legs[1]["leg"], &legs[1]["channel"]), (&json!(1), &json!("sms")));
    assert_eq!(legs[0]["requests"], shown["requests"]);
    for (leg, body, path) in [(&legs[0], "by mail", "/mail"), (&legs[1], "by text", "/texts")] {
        let request = &leg["requests"][0]["request"];
        assert_eq!(request["body"], body);
        assert!(request["url"].as_str().unwrap().ends_with(path), "{request}");
    }
    assert!(scene.sink.received().is_empty());
}

#[tokio::test]
async fn a_channel_without_a_route_is_named_and_another_tenant_sees_nothing() {
    let scene = Scene::start().await;
    let mut message = both();
    message["channels"][1]["channel"] = json!("webhook");
    message["channels"][1]["to"] = json!("http://127.0.0.1/");
    let refused = scene.gateway.post("/v1/messages", &message).await.problem(422);
    assert_eq!(refused.errors[0].pointer, "/channels/1/channel", "{refused}");
    let malformed = scene.gateway.post("/v1/messages", &json!({"channels": [{"channel": "sms", "tex": 1}]})).await;
    assert_eq!(malformed.problem(422).errors[0].pointer, "/channels/0/tex");

    let id = scene.gateway.send(&with(json!({"wants": "delivered"}))).await;
    scene.stands(&id, &["sent", "accepted"]).await;
    let stranger = scene.gateway.key_of("other", ALL_SCOPES);
    for (method, path) in
        [(Method::GET, ""), (Method::GET, "/attempts"), (Method::POST, "/cancel"), (Method::POST, "/retry")]
    {
        let path = format!("/v1/messages/{id}{path}");
        scene.gateway.call_as(&stranger, method, &path, None).await.expect(404);
    }
}

#[tokio::test]
async fn attachments_travel_with_their_own_channel() {
    let scene = Scene::start().await;
    let mut message = with(json!({"mode": "all"}));
    for (leg, name) in [(0, "a"), (1, "b")] {
        let file = json!({"name": name, "media_type": "text/plain", "content": "aGk="});
        message["channels"][leg]["content"]["attachments"] = json!([file]);
    }
    let id = scene.gateway.send(&message).await;
    scene.stands(&id, &["sent", "sent"]).await;
    let rows = "select string_agg(right(message_id::text, 1) || name, ',' order by name) from attachment";
    assert_eq!(scene.gateway.db.sql(rows).await.trim(), "0a,1b");
    scene.gateway.call(Method::DELETE, &format!("/v1/messages/{id}/content"), None).await.expect(200);
    assert_eq!(scene.gateway.db.sql("select count(*) from attachment").await.trim(), "0");
}

/// Sends a message whose mail is refused and whose text follows, on a node that fails as the failpoints say.
async fn survives(failpoints: &str, message: &Value, expected: &[&str]) {
    let config = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
    let mut scene = Scene::with(config, json!({"type": "linear", "delay_ms": 50, "max_attempts": 3})).await;
    scene.gateway.arm(failpoints).await;
    if message["wants"].is_null() {
        scene.mail_is_refused();
    }
    let id = scene.gateway.send(message).await;
    scene.gateway.died().await;
    scene.gateway.take_over().await;
    scene.stands(&id, expected).await;
    let texts = scene.sink.received_at("/texts").len();
    assert_eq!(texts, 1, "{failpoints}: {:?}", scene.attempts(&id).await);
    scene.counts_agree().await;
}

#[tokio::test]
async fn killed_beside_the_commit_in_which_a_channel_fails_the_next_one_follows() {
    for point in ["outcome.before_commit=abort", "outcome.after_commit=abort"] {
        survives(point, &both(), &["failed", "sent"]).await;
    }
}

#[tokio::test]
async fn killed_beside_the_commit_in_which_a_receipt_is_missed_the_next_one_follows() {
    let message = with(json!({"wants": "delivered", "receipt_window": 1}));
    for point in ["leg.before_commit=abort", "leg.after_commit=abort"] {
        survives(point, &message, &["sent", "sent"]).await;
    }
}

#[tokio::test]
async fn a_worker_lost_with_a_further_channel_is_recovered_as_that_channel() {
    let message = both();
    survives("claim.after_commit=abort", &message, &["failed", "sent"]).await;
}

/// The deliveries that wait for a person.
async fn dead_letters(scene: &Scene) -> Vec<String> {
    let list = scene.gateway.get("/v1/dead-letters").await;
    list["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_dead_letter_is_what_the_message_ended_with_and_its_replay_ends_it_anew() {
    let scene = Scene::start().await;
    scene.mail_is_refused();
    let served = scene.gateway.send(&both()).await;
    scene.stands(&served, &["failed", "sent"]).await;
    assert_eq!(dead_letters(&scene).await, [""; 0], "another channel served");

    scene.sink.answers("/texts", [Reply::status(400)]);
    let failed = scene.gateway.send(&both()).await;
    scene.stands(&failed, &["failed", "failed"]).await;
    assert_eq!(dead_letters(&scene).await, [leg(&failed, 1)]);

    scene.sink.answers("/texts", [Reply::status(200)]);
    scene.gateway.post(&format!("/v1/dead-letters/{}/replay", leg(&failed, 1)), &json!({})).await.expect(202);
    let view = scene.stands(&failed, &["failed", "sent"]).await;
    assert_eq!(view["state"], "sent");
    assert_eq!(dead_letters(&scene).await, [""; 0]);
    scene.counts_agree().await;
}

#[tokio::test]
async fn several_channels_take_no_ordering_key() {
    let scene = Scene::start().await;
    let refused = scene.gateway.post("/v1/messages", &with(json!({"ordering_key": "ann"}))).await.problem(422);
    assert_eq!(refused.errors[0].pointer, "/ordering_key", "{refused}");
}

#[tokio::test]
async fn one_channel_goes_the_same_way_whether_a_list_names_it_or_not() {
    let scene = Scene::start().await;
    let only = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "by mail"}});
    for (message, is_list) in [(json!({"channels": [only]}), true), (only, false)] {
        scene.mail_is_refused();
        let id = scene.gateway.send(&message).await;
        let once = async |state: &str| {
            eventually(&format!("{id} as {state}"), || async {
                let view = scene.view(&id).await;
                (view["state"] == state).then_some(view)
            })
            .await
        };
        let view = once("failed").await;
        assert_eq!((&view["channel"], &view["delivery"]["id"]), (&json!("email"), &json!(leg(&id, 0))), "{view}");
        assert_eq!(view.get("deliveries").is_some(), is_list, "{view}");
        scene.sink.answers("/mail", [Reply::status(200)]);
        scene.gateway.post(&format!("/v1/messages/{id}/retry?leg=0"), &json!({})).await.expect(202);
        once("sent").await;
        assert_eq!(scene.attempts(&id).await, ["email scheduled -", "email manual -"]);
        let content = scene.gateway.get(&format!("/v1/messages/{id}/content")).await;
        assert_eq!((content["parts"].as_array().unwrap().len(), &content["parts"][0]["leg"]), (1, &json!(0)));
    }
    scene.counts_agree().await;
}
