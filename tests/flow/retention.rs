//! Retention: content is purged on request, then by the tenant's class; later the whole message goes.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::{Database, eventually, server_folder},
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

const ACCOUNT: &str = "AC00000000000000000000000000000001";
const RECIPIENT: &str = "+14155550123";

/// Creates a connection whose provider repeats the recipient in its answers.
async fn texts(gateway: &TestGateway, sink: &Sink) {
    let refusal =
        json!({"code": 21211, "message": format!("The 'To' number {RECIPIENT} is not valid."), "status": 400});
    let refusal = Reply { body: refusal.to_string(), ..Reply::status(400) };
    sink.answers(&format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json"), [refusal]);
    let config = json!({"account_sid": ACCOUNT, "from": "+15005550006", "base_url": sink.url("")});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "t0ken"})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}], "retry": {"type": "none"}})).await;
}

#[tokio::test]
async fn content_goes_on_request_and_what_happened_stays() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    texts(&gateway, &sink).await;
    let message = json!({"channel": "sms", "to": RECIPIENT, "content": {"text": "secret"}, "reference": "invoice:7",
        "metadata": {"who": RECIPIENT}});
    let id = gateway.send(&message).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    let path = format!("/v1/messages/{id}/content");
    let before = gateway.attempt_list(&id).await;
    assert!(before[0].detail().contains(RECIPIENT), "{before:?}");

    let other = gateway.key_of("two", ALL_SCOPES);
    gateway.call_as(&other, Method::DELETE, &path, None).await.expect(404);
    let purged = gateway.call(Method::DELETE, &path, None).await.expect(200);
    assert!(purged["content_purged_at"].is_string(), "{purged}");
    assert_eq!((&purged["to"], &purged["metadata"]), (&Value::Null, &Value::Null));
    assert_eq!((&purged["state"], &purged["reference"]), (&json!("failed"), &json!("invoice:7")));
    let again = gateway.call(Method::DELETE, &path, None).await.expect(200);
    assert_eq!(again["content_purged_at"], purged["content_purged_at"]);

    let after = gateway.attempt_list(&id).await;
    assert_eq!((&after[0]["code"], &after[0]["detail"]), (&json!("21211"), &Value::Null), "{after:?}");
    let kinds = gateway.event_types(&id).await;
    assert_eq!(kinds, ["message.accepted", "message.failed", "message.content_purged"]);
    assert_eq!(
        gateway.db.sql("select count(*) from message_metadata").await,
        "0",
        "its members are not found any more"
    );
    for table in ["message", "attempt", "delivery", "event", "attachment"] {
        let sql =
            format!("select count(*) from {table} t where t::text like '%{RECIPIENT}%' or t::text like '%secret%'");
        assert_eq!(gateway.db.sql(&sql).await.trim(), "0", "{table}");
    }
    let body = gateway.db.sql("select convert_from(body, 'UTF8') from message").await;
    assert_eq!(body.trim(), "{}");
    let refused = gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.problem(409);
    assert_eq!(refused.code, "content_purged");
}

#[tokio::test]
async fn content_of_what_has_not_ended_stays() {
    let gateway = TestGateway::start().await;
    let config = json!({"host": "mail.example.com", "from": "shop@example.com"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let file = json!({"name": "a.txt", "media_type": "text/plain", "content": "YQ=="});
    let message = json!({"channel": "email", "connection": "mail", "to": "ann@example.org", "content": {"text": "t", "attachments": [file]},
        "send_at": "2099-01-01T00:00:00Z"});
    let id = gateway.send(&message).await;
    let path = format!("/v1/messages/{id}/content");
    let refused = gateway.call(Method::DELETE, &path, None).await.problem(409);
    assert_eq!(refused.code, "wrong_state");
    gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    let arguments = ["message", "purge", &id, "--url", &gateway.url(""), "--key", &gateway.key];
    let printed = gateway.settings().command_line(&arguments).unwrap();
    assert!(printed.contains("content purged"), "{printed}");
    assert_eq!(gateway.db.sql("select count(*) from attachment").await.trim(), "0");
}

const CLASSES: &str = "[retention]\ninterval_s = 1\n[retention.classes.default]\nledger_days = 60\ncontent_days = 30\n\
                       [retention.classes.short]\nledger_days = 20\ncontent_days = 5\n";

/// Creates a message of this number of days ago with an attempt, an event and, if it has ended, a delivery.
async fn old(gateway: &TestGateway, tenant: &str, days: u32, ended: bool) {
    let reference = format!("{tenant}-{days}{}", if ended { "" } else { "-open" });
    let delivery = "insert into delivery (tenant_id, id, message_id, state, attempts, updated_at, finished_at)
                    select tenant_id, id, id, 'sent', 1, created_at, created_at from made;";
    gateway
        .db
        .sql(&format!(
            "begin;
             create temporary table made on commit drop as
             select t.id as tenant_id, at as created_at,
               (left(angarium_uuid_at(at)::text, 14) || '7' || substr(gen_random_uuid()::text, 16))::uuid as id
             from tenant t, (select now() - interval '{days} days' as at) as a where t.name = '{tenant}';
             insert into message (tenant_id, id, created_at, channel, recipient, priority, reference, body)
             select tenant_id, id, created_at, 'sms', '{RECIPIENT}', 2, '{reference}', '{{}}' from made;
             insert into attempt (tenant_id, delivery_id, number, id, trigger, channel, started_at, finished_at, disposition)
             select tenant_id, id, 1, gen_random_uuid(), 'scheduled', 'sms', created_at, created_at, 'accepted' from made;
             insert into event (tenant_id, message_id, id, type, at)
             select tenant_id, id, gen_random_uuid(), 'message.sent', created_at from made;
             insert into message_metadata (tenant_id, message_id, hash) select tenant_id, id, 1 from made;
             insert into message_further_channel (tenant_id, message_id, channel) select tenant_id, id, 'email' from made;
             {}
             commit;",
            if ended { delivery } else { "" }
        ))
        .await;
}

/// `reference|purged|attempts|events` of every message.
async fn kept(gateway: &TestGateway) -> Vec<String> {
    let rows = gateway
        .db
        .sql(
            "select reference, content_purged_at is not null,
               (select count(*) from attempt a where a.tenant_id = m.tenant_id and a.delivery_id = m.id),
               (select count(*) from event e where e.tenant_id = m.tenant_id and e.message_id = m.id)
             from message m order by reference",
        )
        .await;
    rows.lines().map(|line| line.replace(' ', "")).filter(|line| line.contains('|')).collect()
}

#[tokio::test]
async fn each_class_of_tenants_has_its_time() {
    // No node yet: one would drop the old weeks before they are filled.
    let mut gateway = TestGateway::with(0, CLASSES).await;
    let settings = gateway.settings();
    settings.command_line(&["tenant", "create", "brief", "--class", "short"]).unwrap();
    settings.command_line(&["tenant", "create", "lost"]).unwrap();
    assert!(settings.command_line(&["tenant", "create", "none", "--class", "none"]).is_err());
    assert!(settings.command_line(&["tenant", "classify", "lost", "none"]).is_err());
    settings.command_line(&["tenant", "classify", "lost", "short"]).unwrap();
    // A tenant whose class is no longer in the configuration is kept as long as the longest class.
    gateway.db.sql("update tenant set retention_class = 'gone' where name = 'lost'").await;
    gateway.db.sql("select angarium_partitions_ensure(now() - interval '90 days', now() - interval '10 days')").await;
    old(&gateway, "one", 85, false).await;
    for (tenant, ages) in [("one", [85, 70, 40, 10]), ("brief", [70, 25, 10, 3]), ("lost", [70, 50, 25, 3])] {
        for days in ages {
            old(&gateway, tenant, days, true).await;
        }
    }
    let week = "select count(*) from pg_class
                where relname ~ ('_' || to_char((now() - interval '70 days') at time zone 'UTC', 'IYYY\"w\"IW') || '$')";
    assert_eq!(gateway.db.sql(week).await.trim(), "9");
    // As a node left it that died while it worked.
    let dead = "update task_lease set holder = gen_random_uuid(), held_until = now() + interval '2 seconds'
                where task = 'retention'";
    gateway.db.sql(dead).await;
    let node = gateway.new_node().await;
    gateway.nodes.push(Some(node));
    // A purge is an event of its own.
    let expected = [
        "brief-10|t|1|2",
        "brief-3|f|1|1",
        "lost-25|f|1|1",
        "lost-3|f|1|1",
        "lost-50|f|1|1",
        "one-10|f|1|1",
        "one-40|t|1|2",
        "one-85-open|f|1|1",
    ];
    eventually(&format!("{expected:?}"), || async { (kept(&gateway).await == expected).then_some(()) }).await;
    eventually("the end of a week", || async { (gateway.db.sql(week).await.trim() == "0").then_some(()) }).await;

    // Once it has ended, the week that it held goes as well.
    let end = "insert into delivery (tenant_id, id, message_id, state, attempts, updated_at, finished_at)
               select tenant_id, id, id, 'sent', 1, now(), now() from message where reference = 'one-85-open'";
    gateway.db.sql(end).await;
    eventually("the end of the last old message", || async { (kept(&gateway).await.len() == 7).then_some(()) }).await;
    let orphans = "select (select count(*) from attempt) + (select count(*) from delivery)";
    eventually("the end of what belonged to it", || async {
        (gateway.db.sql(orphans).await.trim() == "14").then_some(())
    })
    .await;
    // Two of the seven are purged: they are no longer found by their metadata.
    let found_by = "select (select count(*) from message_metadata), (select count(*) from message_further_channel)";
    eventually("the end of what they were found by", || async {
        (gateway.db.sql(found_by).await == "5|7").then_some(())
    })
    .await;
}

/// The tables' owner is no superuser and sees no row of them, and the role of a node owns nothing.
#[tokio::test]
async fn an_owner_who_is_no_superuser_lets_weeks_go() {
    let folder = server_folder();
    let db = Database::of_an_owner(&folder).await;
    let url = db.url.clone();
    let mut gateway = TestGateway::on(db, &url, 0, CLASSES).await;
    let owners = "select string_agg(distinct pg_get_userbyid(relowner)::text, ' ') from pg_class
                  where relname ~ '^(message|attempt|stat_rollup|task_lease)'";
    assert_eq!(gateway.db.sql(owners).await, "keeper");
    gateway.db.sql("select angarium_partitions_ensure(now() - interval '90 days', now() - interval '10 days')").await;
    for days in [70, 40, 10] {
        old(&gateway, "one", days, true).await;
    }
    let week = "select count(*) from pg_class
                where relname ~ ('_' || to_char((now() - interval '70 days') at time zone 'UTC', 'IYYY\"w\"IW') || '$')";
    assert_eq!(gateway.db.sql(week).await, "9");
    let node = gateway.new_node().await;
    gateway.nodes.push(Some(node));
    let expected = ["one-10|f|1|1", "one-40|t|1|2"];
    eventually(&format!("{expected:?}"), || async { (kept(&gateway).await == expected).then_some(()) }).await;
    eventually("the end of a week", || async { (gateway.db.sql(week).await == "0").then_some(()) }).await;
}

#[tokio::test]
async fn a_week_stays_while_a_receipt_of_it_is_awaited() {
    let gateway = TestGateway::with(0, CLASSES).await;
    gateway.db.sql("select angarium_partitions_ensure(now() - interval '90 days', now() - interval '10 days')").await;
    old(&gateway, "one", 70, true).await;
    let awaited = "insert into receipt_watch (tenant_id, delivery_id, message_id, due_at)
                   select tenant_id, id, id, now() from message where reference = 'one-70'";
    gateway.db.sql(awaited).await;
    let over = "select count(*) from angarium_partitions_over(now() - interval '60 days')
                where week = to_char((now() - interval '70 days') at time zone 'UTC', 'IYYY\"w\"IW')";
    assert_eq!(gateway.db.sql(over).await.trim(), "0", "another channel may have to follow");
    gateway.db.sql("delete from receipt_watch").await;
    // No node runs that folds.
    assert_eq!(gateway.db.sql(over).await.trim(), "0", "its facts are not in the statistics");
    gateway.db.sql("update stat_watermark set folded_to = pg_snapshot_xmax(pg_current_snapshot())::text::bigint").await;
    assert_ne!(gateway.db.sql(over).await.trim(), "0");
}
