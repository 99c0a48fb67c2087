//! Statistics that agree with the ledger, whatever happened to the gateways that wrote both.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use angarium_domain::statistics::Latency;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{
    database::{Database, eventually},
    gateway::{ALL_SCOPES, TestGateway},
    seed,
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
const ACCOUNT: &str = "AC00000000000000000000000000000001";

type Counts = BTreeMap<String, i64>;

/// Returns the rows of a query with a name and a number each.
async fn counts(db: &Database, sql: &str) -> Counts {
    let text = db.sql(sql).await;
    let rows = text.lines().filter_map(|line| line.rsplit_once('|'));
    rows.map(|(name, count)| (name.trim().to_owned(), count.trim().parse().unwrap())).collect()
}

async fn number(db: &Database, sql: &str) -> i64 {
    db.sql(sql).await.trim().parse().unwrap()
}

/// Returns an object of numbers; 0 counts as missing.
fn object(value: &Value) -> Counts {
    let fields = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    fields.iter().map(|(name, count)| (name.clone(), count.as_i64().unwrap())).collect()
}

fn costs(figures: &Value) -> Counts {
    let costs = figures["cost"].as_array().unwrap().iter();
    costs.map(|it| (it["currency"].as_str().unwrap().to_owned(), it["micros"].as_i64().unwrap())).collect()
}

/// Every figure against SQL over the ledger.
async fn agrees(gateway: &TestGateway) {
    let db = &gateway.db;
    let stats = gateway.get("/v1/stats").await;
    let totals = &stats["totals"];
    assert_eq!(totals["accepted"], number(db, "select count(*) from message").await, "{totals}");
    let ended = "select state, count(*) from delivery where state <> 'queued' group by 1";
    assert_eq!(object(&totals["states"]), counts(db, ended).await);
    let open = "select count(*) from message m left join delivery d using (tenant_id, id)
                where coalesce(d.state, 'queued') = 'queued'";
    assert_eq!(totals["open"], number(db, open).await, "{totals}");
    assert_eq!(totals["attempts"], number(db, "select count(*) from attempt").await);
    let dispositions = "select disposition, count(*) from attempt group by 1";
    assert_eq!(object(&totals["dispositions"]), counts(db, dispositions).await);
    let retries = "select count(*) from attempt where trigger in ('retry', 'manual')";
    assert_eq!(totals["retries"], number(db, retries).await);
    let fallbacks = "select fallback_reason, count(*) from attempt where fallback_reason is not null group by 1";
    assert_eq!(object(&totals["fallbacks"]), counts(db, fallbacks).await);
    let cost = "select cost_currency, sum(cost_micros) from attempt where cost_micros is not null group by 1";
    assert_eq!(costs(totals), counts(db, cost).await);

    for (by, key) in [
        ("channel", "channel"),
        ("connection", "'conn_' || replace(connection_id::text, '-', '')"),
        ("provider", "provider"),
        ("route", "'route_' || replace(route_id::text, '-', '') || '/' || route_version"),
        ("code", "unified_code"),
    ] {
        let groups = gateway.get(&format!("/v1/stats?group_by={by}")).await;
        let name = |group: &Value| match (group["key"].as_str(), group["version"].as_i64()) {
            (Some(key), Some(version)) => format!("{key}/{version}"),
            (key, _) => key.unwrap_or("-").to_owned(),
        };
        let groups: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|it| (name(it), &it["totals"])).collect();
        let attempts: Counts =
            groups.iter().map(|(name, it)| (name.clone(), it["attempts"].as_i64().unwrap())).collect();
        let attempts: Counts = attempts.into_iter().filter(|(_, count)| *count != 0).collect();
        let sql = format!("select coalesce({key}, '-'), count(*) from attempt group by 1");
        assert_eq!(attempts, counts(db, &sql).await, "attempts by {by}");
        let states: Counts = groups
            .iter()
            .flat_map(|(name, it)| {
                object(&it["states"]).into_iter().map(move |(state, n)| (format!("{name} {state}"), n))
            })
            .collect();
        // A delivery counts for what its last attempt counts for.
        let sql = format!(
            "with ended as (
               select d.state, coalesce(a.channel, m.channel) as channel, a.connection_id, a.provider, a.route_id,
                 a.route_version, a.unified_code
               from delivery d join message m on m.tenant_id = d.tenant_id and m.id = d.id
               left join attempt a on a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.number = d.attempts
               where d.state <> 'queued'
             )
             select coalesce({key}, '-') || ' ' || state, count(*) from ended group by 1"
        );
        assert_eq!(states, counts(db, &sql).await, "states by {by}");
    }
}

/// The same in each bucket.
async fn agrees_in_time(gateway: &TestGateway) {
    for bucket in ["minute", "hour", "day"] {
        let stats = gateway.get(&format!("/v1/stats?bucket={bucket}")).await;
        let series = stats["series"].as_array().unwrap();
        let of = |field: &str| -> Counts {
            let all = series.iter().map(|it| (it["at"].as_str().unwrap().to_owned(), it[field].as_i64().unwrap()));
            all.filter(|(_, count)| *count != 0).collect()
        };
        let at = |what: &str| {
            format!(
                "to_char(date_trunc('{bucket}', {what}, 'UTC') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
            )
        };
        let attempts = format!("select {}, count(*) from attempt group by 1", at("finished_at"));
        assert_eq!(of("attempts"), counts(&gateway.db, &attempts).await, "{bucket}");
        let born = "to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000)";
        let accepted = format!("select {}, count(*) from message group by 1", at(born));
        assert_eq!(of("accepted"), counts(&gateway.db, &accepted).await, "{bucket}");
    }
}

/// Returns replies of which a part fails, as on a bad day.
fn bad_day(count: usize) -> Vec<Reply> {
    // A throttle holds all that goes through the connection for a second: it is rare.
    let status = |n: usize| match n % 7 {
        1 => 503,
        3 => 410,
        5 if n % 70 == 5 => 429,
        _ => 200,
    };
    (0..count).map(|n| Reply::status(status(n))).chain([Reply::status(200)]).collect()
}

fn text_accepted() -> Reply {
    let body = json!({"sid": format!("SM{}", "0".repeat(32)), "status": "queued", "num_segments": "2", "price": null});
    Reply { body: body.to_string(), ..Reply::status(201) }
}

/// Two webhook connections with bad days, the second for when the first fails, and texts that cost.
async fn providers(gateway: &TestGateway, sink: &Sink) {
    sink.answers("/first", bad_day(2_000));
    sink.answers("/second", bad_day(2_000));
    sink.answers(&format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json"), [text_accepted()]);
    for name in ["first", "second"] {
        gateway.connection(name, "webhook", json!({"url": sink.url(&format!("/{name}"))}), json!({})).await;
    }
    let retry = json!({"type": "linear", "delay_ms": 50, "max_attempts": 3});
    let candidates = json!([{"connection": "first"}, {"connection": "second"}]);
    gateway.route("webhook", json!({"candidates": candidates, "retry": retry})).await;
    let config = json!({"account_sid": ACCOUNT, "from": "+15005550006", "base_url": sink.url("")});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "t0ken"})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}], "retry": retry})).await;
}

/// Sends batches to any living node until it is stopped. An unanswered batch is sent again with the same keys.
struct Load {
    addresses: Arc<Mutex<Vec<std::net::SocketAddr>>>,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicUsize>,
    key: String,
}

impl Load {
    async fn run(self) {
        let client = crate::support::gateway::client();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let messages: Vec<_> = (0..5)
                .map(|n| match n {
                    0 => json!({"channel": "sms", "to": "+14155550123", "content": {"text": "t"}}),
                    _ => json!({"channel": "webhook", "content": {"payload": {"n": n}}}),
                })
                .enumerate()
                .map(|(n, mut message)| {
                    message["idempotency_key"] = json!(format!("{number}-{n}"));
                    message
                })
                .collect();
            self.send(&client, &json!({"messages": messages})).await;
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }

    async fn send(&self, client: &reqwest::Client, body: &Value) {
        loop {
            let address = {
                let addresses = self.addresses.lock().unwrap();
                addresses[fastrand::usize(0..addresses.len())]
            };
            let request = client.post(format!("http://{address}/v1/messages/batch")).bearer_auth(&self.key).json(body);
            let sent = tokio::time::timeout(Duration::from_secs(5), request.send()).await;
            if let Ok(Ok(answer)) = sent
                && answer.status() == 200
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_agree_with_the_ledger_after_kills() {
    const NODES: usize = 2;
    let (mut gateway, sink) = (TestGateway::with(NODES, CONFIG).await, Sink::start().await);
    providers(&gateway, &sink).await;
    // On a busy machine requests time out: a breaker that opens holds for as long as this waits.
    for name in ["first", "second"] {
        gateway.without_breaker(name).await;
    }
    let addresses = Arc::new(Mutex::new(gateway.nodes.iter().flatten().map(|node| node.address()).collect::<Vec<_>>()));
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = || Load {
        addresses: Arc::clone(&addresses),
        stop: Arc::clone(&stop),
        next: Arc::clone(&next),
        key: gateway.key.clone(),
    };
    let loads: Vec<_> = (0..3).map(|_| tokio::spawn(load().run())).collect();
    let mut random = seed::rng();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(random.u64(100..400))).await;
        let victim = random.usize(0..NODES);
        let address = gateway.nodes[victim].as_ref().unwrap().address();
        gateway.kill(victim);
        addresses.lock().unwrap().retain(|it| *it != address);
        let node = gateway.new_node().await;
        addresses.lock().unwrap().push(node.address());
        gateway.nodes[victim] = Some(node);
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    let open = "select count(*) from message m left join delivery d using (tenant_id, id)
                where d.state is null or d.state = 'queued'";
    eventually("the end of every delivery", || async { (number(&gateway.db, open).await == 0).then_some(()) }).await;
    let kinds = number(&gateway.db, "select count(distinct disposition) from attempt").await;
    assert!(kinds >= 4, "the traffic was real: {kinds} dispositions");

    agrees(&gateway).await;
    agrees_in_time(&gateway).await;
    by_hand(&gateway).await;
    agrees(&gateway).await;
    folded(&gateway.db).await;
    agrees(&gateway).await;
    agrees_in_time(&gateway).await;
}

/// How many facts of the ledger are not in the roll-ups.
const UNFOLDED: &str = "select (select count(*) from message where written_in >= folded_to)
    + (select count(*) from attempt where written_in >= folded_to)
    + (select count(*) from transition where written_in >= folded_to) from stat_watermark";

/// Waits until all facts are in the roll-ups.
async fn folded(db: &Database) {
    eventually("the folding", || async { (number(db, UNFOLDED).await == 0).then_some(()) }).await;
}

/// A transaction that was opened first and commits last: what it wrote is not passed over by a fold of what came after.
#[tokio::test]
async fn they_agree_whatever_the_order_of_commits() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    providers(&gateway, &sink).await;
    let (before, after) = (send_few(&gateway).await, "select count(*) from message where written_in >= ");
    folded(&gateway.db).await;
    let mut slow = PgConnection::connect(&gateway.db.url).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut slow).await.unwrap();
    let own: i64 = sqlx::query_scalar("select angarium_transaction()").fetch_one(&mut slow).await.unwrap();
    let later = send_few(&gateway).await;
    agrees(&gateway).await;
    assert_eq!(number(&gateway.db, &format!("{after}{own}")).await, later, "they were written after it began");
    let late = "insert into message (tenant_id, id, created_at, channel, recipient, priority, body)
                select tenant_id, (left(id::text, 24) || '000000000000')::uuid, now(), channel, '', priority, body
                from message limit 1";
    sqlx::raw_sql(late).execute(&mut slow).await.unwrap();
    agrees(&gateway).await;
    assert!(number(&gateway.db, UNFOLDED).await >= later, "nothing is folded that is younger than an open transaction");
    sqlx::raw_sql("commit").execute(&mut slow).await.unwrap();
    agrees(&gateway).await;
    folded(&gateway.db).await;
    agrees(&gateway).await;
    assert_eq!(number(&gateway.db, "select count(*) from message").await, before + later + 1);
}

/// PostgreSQL's numbers of transactions begin anew in the cluster into which a dump is restored.
#[tokio::test]
async fn they_agree_after_a_dump_was_restored_elsewhere() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    providers(&gateway, &sink).await;
    send_few(&gateway).await;
    let node = gateway.nodes[0].take().unwrap();
    tokio::task::spawn_blocking(move || node.stop()).await.unwrap().expect("it stops by itself");
    gateway
        .db
        .sql(
            "update stat_watermark set folded_to = folded_to + 1000000000;
             update message set written_in = written_in + 1000000000;
             update attempt set written_in = written_in + 1000000000",
        )
        .await;
    gateway.take_over().await;
    agrees(&gateway).await;
    send_few(&gateway).await;
    agrees(&gateway).await;
    eventually("a fold beyond the watermark of the other cluster", || async {
        let newest = "select count(*) from message where written_in = (select max(written_in) from message)
                      and written_in < (select folded_to from stat_watermark)";
        (number(&gateway.db, newest).await > 0).then_some(())
    })
    .await;
    agrees(&gateway).await;
}

/// Sends a few messages of both channels; returns how many, once they have ended.
async fn send_few(gateway: &TestGateway) -> i64 {
    let text = json!({"channel": "sms", "to": "+14155550123", "content": {"text": "t"}});
    let hook = json!({"channel": "webhook", "content": {"payload": {}}});
    for body in [&text, &hook, &hook] {
        let id = gateway.send(body).await;
        gateway.settled(&id).await;
    }
    3
}

/// A histogram has the steps that the domain says, wherever it is counted.
#[tokio::test]
async fn the_database_counts_latencies_in_the_domains_steps() {
    let db = Database::new().await;
    let mut random = seed::rng();
    let times = (0..200).map(|_| {
        let bits = random.u32(1..31);
        random.u64(0..1 << bits)
    });
    let times: Vec<u64> = times.chain([0, 124, 126]).collect();
    let mut expected = Latency::default();
    times.iter().for_each(|micros| expected.record(Duration::from_micros(*micros)));
    let list = times.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sql = format!(
        "select angarium_latency_counts(step, count) from (
           select angarium_latency_step(now(), now() + micros * interval '1 microsecond') as step, count(*) as count
           from unnest(array[{list}]::bigint[]) as t (micros) group by step) as steps"
    );
    let counted = db.sql(&sql).await;
    let counted: Vec<i32> = counted.trim().trim_matches(['{', '}']).split(',').map(|it| it.parse().unwrap()).collect();
    assert_eq!(Latency::from_counts(counted), expected, "{list}");
    assert_eq!(db.sql("select angarium_latency_step(now(), now() - interval '1 s') is null").await.trim(), "t");
}

/// Actions of people count as well: cancel, retry a failure, replay dead letters, and resolve an unknown delivery.
async fn by_hand(gateway: &TestGateway) {
    let body =
        json!({"channel": "sms", "to": "+14155550123", "content": {"text": "t"}, "send_at": "2099-01-01T00:00:00Z"});
    for _ in 0..2 {
        let id = gateway.send(&body).await;
        gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    }
    let id = gateway.send(&body).await;
    gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    gateway.settled(&id).await;
    for state in ["failed", "unknown"] {
        let list = gateway.get(&format!("/v1/messages?state={state}&limit=3")).await;
        for message in list["data"].as_array().unwrap() {
            let id = message["id"].as_str().unwrap();
            gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
            gateway.settled(id).await;
        }
    }
    let list = gateway.get("/v1/messages?state=unknown&limit=6").await;
    for (message, outcome) in list["data"].as_array().unwrap().iter().zip(["sent", "failed", "again"].iter().cycle()) {
        let id = message["id"].as_str().unwrap();
        let body = json!({"as": outcome, "reason": "somebody looked"});
        gateway.post(&format!("/v1/messages/{id}/resolve"), &body).await.expect(200);
        gateway.settled(id).await;
    }
    let body = json!({"filter": {}, "rate_per_second": 1000});
    let replay = gateway.post("/v1/dead-letters/replays", &body).await.expect(202);
    let path = format!("/v1/dead-letters/replays/{}", replay["id"].as_str().unwrap());
    eventually("the end of the replay", || async {
        let replay = gateway.get(&path).await;
        (replay["state"] == "finished" && replay["outcomes"]["queued"] == Value::Null).then_some(())
    })
    .await;
}

#[tokio::test]
async fn they_tell_rates_latency_and_cost() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    providers(&gateway, &sink).await;
    sink.answers("/first", [Reply::status(503), Reply::status(200)]);
    sink.answers("/second", [Reply::status(200).after(Duration::from_millis(80))]);
    for body in [
        json!({"channel": "webhook", "content": {"payload": {}}}),
        json!({"channel": "webhook", "content": {"payload": {}}}),
        json!({"channel": "sms", "to": "+14155550123", "content": {"text": "t"}}),
    ] {
        let id = gateway.send(&body).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
    }
    let stats = gateway.get("/v1/stats?group_by=connection").await;
    let totals = &stats["totals"];
    assert_eq!((&totals["accepted"], &totals["attempts"]), (&json!(3), &json!(4)), "{stats}");
    assert_eq!((&totals["success_rate"], &totals["delivery_rate"]), (&json!(1.0), &Value::Null), "{stats}");
    assert_eq!(totals["fallbacks"], json!({"primary_failed": 1}));
    let group = |name: &str| {
        let groups = stats["groups"].as_array().unwrap().iter();
        groups.clone().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name} in {stats}")).clone()
    };
    let took = group("second")["totals"]["latency_ms"]["p99"].as_f64().unwrap();
    assert!((80.0 * 0.909..2_000.0).contains(&took), "{took} ms");
    assert_eq!(group("first")["totals"]["dispositions"], json!({"accepted": 1, "rejected_transient": 1}));
    assert_eq!(group("first")["totals"]["accepted"], Value::Null);
    assert_eq!(group("texts")["totals"]["cost"][0]["currency"], "USD");
    assert_eq!(gateway.get("/v1/stats?connection=texts").await["totals"]["attempts"], 1);
    assert_eq!(gateway.get("/v1/stats?channel=webhook").await["totals"]["accepted"], 2);

    let printed = gateway.settings().command_line(&cli(&gateway, &["--by", "connection"])).unwrap();
    assert!(printed.contains("texts") && printed.contains("100.0 %") && printed.contains("USD"), "{printed}");
    let printed = gateway.settings().command_line(&cli(&gateway, &["--since", "2d", "--json"])).unwrap();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&printed["bucket"], &printed["totals"]["accepted"]), (&json!("hour"), &json!(3)));
}

fn cli<'a>(gateway: &'a TestGateway, rest: &[&'a str]) -> Vec<&'a str> {
    // Kept for the test's length.
    let url: &'static str = gateway.url("").leak();
    [&["stats", "--url", url, "--key", &gateway.key], rest].concat()
}

#[tokio::test]
async fn a_connections_health_is_told() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    providers(&gateway, &sink).await;
    sink.answers("/first", [Reply::status(503), Reply::status(404), Reply::status(200)]);
    sink.answers("/second", [Reply::status(200)]);
    for _ in 0..3 {
        let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": {}}})).await;
        gateway.settled(&id).await;
    }
    let disabled = json!({"enabled": false});
    gateway.call(Method::PATCH, "/v1/connections/texts", Some(&disabled)).await.expect(200);
    // Before it is folded and after.
    for _ in 0..2 {
        let first = gateway.health_of("first").await;
        for window in ["5m", "1h", "24h"] {
            let window = &first["windows"][window];
            // The 404 is about the endpoint.
            assert_eq!((&window["attempts"], &window["success_rate"]), (&json!(3), &json!(0.5)), "{first}");
            assert!(window["latency_ms"]["p99"].as_f64().unwrap() > 0.0, "{first}");
        }
        assert_eq!(first["last_error"]["code"], "404", "{first}");
        assert_eq!(
            (&first["last_error"]["status"], &first["breaker"]["state"]),
            (&json!(404), &json!("closed")),
            "{first}"
        );
        assert_eq!(gateway.health_of("second").await["last_error"], Value::Null);
        let texts = gateway.health_of("texts").await;
        assert_eq!((&texts["enabled"], &texts["windows"]["24h"]["attempts"]), (&json!(false), &json!(0)), "{texts}");
        assert_eq!(texts["provider"]["name"], "sms-twilio");
        folded(&gateway.db).await;
    }
    let printed =
        gateway.settings().command_line(&["health", "--url", &gateway.url(""), "--key", &gateway.key]).unwrap();
    assert!(printed.contains("50.0 % of 3") && printed.contains("404"), "{printed}");

    let other = gateway.key_of("two", ALL_SCOPES);
    let page = gateway.call_as(&other, Method::GET, "/v1/health/providers", None).await.expect(200);
    assert_eq!(page["data"], json!([]));
}

#[tokio::test]
async fn a_tenant_sees_its_own_and_an_operator_all() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    for _ in 0..2 {
        let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": {}}})).await;
        gateway.settled(&id).await;
    }
    let other = gateway.key_of("two", ALL_SCOPES);
    let operator = gateway.key_of("operations", "operator");
    let as_ = async |key: &str, path: &str| gateway.call_as(key, Method::GET, path, None).await;
    let mine = gateway.shown_connection("hook").await.id.clone();
    for path in ["/v1/stats".to_owned(), format!("/v1/stats?connection={mine}")] {
        assert_eq!(as_(&other, &path).await.expect(200)["totals"]["attempts"], 0, "{path}");
    }
    as_(&other, "/v1/operator/stats").await.expect(403);
    as_(&operator, "/v1/stats").await.expect(403);
    let all = as_(&operator, "/v1/operator/stats?group_by=tenant").await.expect(200);
    assert_eq!(all["groups"][0]["name"], "one");
    assert_eq!(all["groups"][0]["totals"]["states"], json!({"sent": 2}));
    let none = as_(&operator, "/v1/operator/stats?tenant=two").await.expect(200);
    assert_eq!(none["totals"]["accepted"], 0);
    as_(&operator, "/v1/operator/stats?tenant=nobody").await.expect(400);
}

#[tokio::test]
async fn every_bad_parameter_is_named() {
    let gateway = TestGateway::start().await;
    let query = "from=yesterday&bucket=week&group_by=tenant&channel=SMS&connection=nobody&route=none&color=red";
    let problem = gateway.call(Method::GET, &format!("/v1/stats?{query}"), None).await.expect(400);
    let mut named: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|it| it["pointer"].as_str().unwrap()).collect();
    named.sort_unstable();
    let expected = ["bucket", "channel", "color", "connection", "from", "group_by", "route"];
    assert_eq!(named, expected.map(|it| format!("query/{it}")));
    for range in [
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00Z&bucket=minute",
        "from=1970-01-01T00:00:00Z",
    ] {
        let problem = gateway.call(Method::GET, &format!("/v1/stats?{range}"), None).await.problem(400);
        assert_eq!(problem.errors[0].pointer, "query/from", "{range}: {problem}");
    }
}
