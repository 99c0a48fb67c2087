//! What the configuration reads, refuses and shows; and that the operators' page has its table.

use std::fmt::Write;

use serde_json::Value;

use super::*;

const URL: &str = "postgres://localhost/angarium";
const DATABASE: (&str, &str) = ("DATABASE_URL", URL);

fn assemble(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    assemble_with(toml, environment, &FlagSettings::default())
}

fn assemble_with(toml: &str, environment: &[(&str, &str)], flags: &FlagSettings) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (config, problems) = Config::assemble(toml.parse().unwrap(), &environment, flags);
    config.unless(problems)
}

fn refusal(toml: &str, environment: &[(&str, &str)]) -> String {
    assemble(toml, environment).unwrap_err().to_string()
}

fn defaults() -> Config {
    assemble("", &[DATABASE]).unwrap()
}

// ── The operators' table ──────────────────────────────────────────────────────────────────────────

const TABLE: (&str, &str) = ("<!-- The table of `node/config/settings.rs`. -->\n", "<!-- End of the table. -->\n");

/// `ANGARIUM_UPDATE=1 cargo xtask test settings_table` writes it.
#[test]
fn the_operators_page_has_the_settings_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operators.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(TABLE.0).unwrap();
    let (_, after) = rest.split_once(TABLE.1).unwrap();
    let expected = format!("{before}{}{}{}{after}", TABLE.0, settings_table(), TABLE.1);
    if std::env::var_os("ANGARIUM_UPDATE").is_some() {
        std::fs::write(path, &expected).unwrap();
    } else if page != expected {
        panic!("docs/operators.md must have this table; ANGARIUM_UPDATE=1 writes it:\n\n{}", settings_table());
    }
}

fn settings_table() -> String {
    let (config, _) = Config::assemble(Table::new(), &HashMap::new(), &FlagSettings::default());
    let defaults = serde_json::to_value(config).unwrap();
    let mut table = "| setting | default | limits | environment | meaning |\n|---|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = setting.default.map_or_else(|| default_of(setting, &defaults), str::to_owned);
        let also = setting.also.map(|name| format!(", `{name}`")).unwrap_or_default();
        let (key, limits, variable) = (setting.key, setting.limits(), setting.variable());
        let meaning = setting.meaning.trim().replace('|', "\\|");
        writeln!(table, "| `{key}` | {default} | {limits} | `{variable}`{also} | {meaning} |").unwrap();
    }
    table
}

fn default_of(setting: &Setting, defaults: &Value) -> String {
    match defaults.pointer(&format!("/{}", setting.key.replace('.', "/"))).unwrap() {
        Value::Null => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "empty".to_owned(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), |number| setting.number(number)),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

// ── Sources ───────────────────────────────────────────────────────────────────────────────────────

#[test]
fn the_environment_goes_before_the_file_and_flags_before_both() {
    let toml = "[queue]\nlease_ms = 120000\npoll_ms = 7\n[http]\nlisten = '127.0.0.1:1'";
    let environment = [
        DATABASE,
        ("ANGARIUM_QUEUE__LEASE_MS", "150000"),
        ("ANGARIUM_QUEUE__POLL_MS", ""),
        ("ANGARIUM_EGRESS__ALLOW", "127.0.0.0/8, 10.0.0.0/8"),
        ("ANGARIUM_ROLES", "dispatch"),
        ("ANGARIUM_KEY", "ak_not_a_setting"),
        ("ANGARIUM_HTTP__LISTEN", "127.0.0.1:2"),
    ];
    let flags = FlagSettings::default().with("http.listen", Some("127.0.0.1:9".to_owned())).with("log.filter", None);
    let config = assemble_with(toml, &environment, &flags).unwrap();
    assert_eq!((config.queue.lease_ms, config.queue.poll_ms), (150_000, 7));
    assert_eq!(config.http.listen.port(), 9);
    assert_eq!(config.egress.allow.len(), 2);
    assert_eq!(config.roles, NodeRoles(vec![NodeRole::Dispatch]));
    assert_eq!(&*config.database.url, URL);
}

#[test]
fn a_second_variable_is_weaker_than_the_file() {
    let toml = "[database]\nurl = 'postgres://file/x'\n[telemetry]\notlp_endpoint = 'http://file:1'";
    let environment = [DATABASE, ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://environment:1")];
    let config = assemble(toml, &environment).unwrap();
    assert_eq!(&*config.database.url, "postgres://file/x");
    assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some("http://file:1"));
    let config = assemble("", &environment).unwrap();
    assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some("http://environment:1"));
}

#[test]
fn an_unknown_variable_is_refused_with_the_one_that_was_meant() {
    for (name, meant) in [
        ("ANGARIUM_LISTEN", "ANGARIUM_HTTP__LISTEN"),
        ("ANGARIUM_HTTP_LISTEN", "ANGARIUM_HTTP__LISTEN"),
        ("ANGARIUM_HTTP__LISEN", "ANGARIUM_HTTP__LISTEN"),
        ("ANGARIUM_DATABASE_URL", "ANGARIUM_DATABASE__URL"),
        ("ANGARIUM_ROLE", "ANGARIUM_ROLES"),
        ("ANGARIUM_KEY_FILE", "ANGARIUM_SECRETS__KEY_FILE"),
    ] {
        let message = refusal("", &[DATABASE, (name, "x"), ("ANGARIUM_NONSENSE", "")]);
        assert!(message.contains(&format!("`{name}`: does not exist; the nearest is {meant}:")), "{message}");
        assert!(message.contains("`ANGARIUM_NONSENSE`: does not exist"), "{message}");
    }
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        ("ANGARIUM_URL", "http://localhost"),
        ("ANGARIUM_KEY", "ak_x"),
        ("ANGARIUM_CONFIG", "angarium.toml"),
        ("ANGARIUM_TEST_KILLS", "9"),
        ("ANGARIUM_REQUIRE_PEERS", "1"),
        ("ANGARIUM_API_SERVICE_HOST", "10.0.0.1"),
        ("ANGARIUM_SERVICE_PORT_HTTP", "8080"),
        ("ANGARIUM_PORT", "tcp://10.0.0.1:8080"),
        ("ANGARIUM_PORT_8080_TCP_ADDR", "10.0.0.1"),
        DATABASE,
    ];
    assemble("", &others).unwrap();
    assert!(refusal("", &[("ANGARIUM_PORT", "8080"), DATABASE]).contains("ANGARIUM_PORT"));
}

// ── Problems ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_bad_setting_is_named_with_the_remedy() {
    for (toml, words) in [
        ("[queue]\nlease_ms = 1000", ["`queue.lease_ms` (ANGARIUM_QUEUE__LEASE_MS)", "90000 (got 1000)"]),
        ("[queue]\nlease_mss = 1", ["`queue.lease_mss`", "`queue.lease_ms`"]),
        ("queue = 1", ["`queue`", "[queue]"]),
        ("[queue.poll_ms]\nx = 1", ["`queue.poll_ms`", "must be one value (got a table)"]),
        ("[databse]", ["`databse`", "does not exist"]),
        ("[http]\nlisten = 'here'", ["`http.listen`", "an IP address and a port"]),
        ("roles = ['cook']", ["cook", "`api` or `dispatch`"]),
        ("roles = []", ["`roles`", "must name"]),
        ("[database]\nmax_connections = 'many'", ["`database.max_connections`", "must be 2 to 1000 (got `many`)"]),
        ("[dispatch]\nmax_in_flight = -1", ["`dispatch.max_in_flight`", "must be at least 1 (got `-1`)"]),
        ("[dispatch]\nmax_in_flight_bytes = 5", ["`dispatch.max_in_flight_bytes`", "16777216 (16 MiB) to"]),
        ("[egress]\nallow = ['a', '10.0.0.0/8', 'b']", ["(got `a`)", "(got `b`)"]),
    ] {
        let message = refusal(toml, &[DATABASE]);
        for word in words {
            assert!(message.contains(word), "{toml}: {message}");
        }
    }
    assert!(refusal("", &[]).contains("set DATABASE_URL"));
}

#[test]
fn a_file_that_is_not_toml_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("angarium.toml");
    let refused = |path: &Path| Config::load(Some(path), &FlagSettings::default()).unwrap_err().to_string();
    assert!(refused(&path).contains("can't be read"));
    std::fs::write(&path, "[database").unwrap();
    let message = refused(&path);
    assert!(message.contains("angarium.toml") && message.contains("--config"), "{message}");
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    let message = refusal(
        "[queue]\nlease_mss = 1\npoll_ms = 0\n[databse]\nurl = 'x'\n[http]\nlisten = 'here'\npublic_url = 'gw.example'\n\
         [log]\nformat = 'xml'\n[dispatch]\nmax_in_flight_per_connection = 0\n[node]\nehlo_name = 'a b'\n\
         [telemetry]\notlp_endpoint = 'collector:4318'\ntrace_sample_ratio = 2",
        &[("ANGARIUM_DISPATCH__DEADLINE_MS", "soon"), ("ANGARIUM_LISTEN", "x")],
    );
    for key in [
        "queue.lease_mss",
        "queue.poll_ms",
        "databse.url",
        "database.url",
        "http.listen",
        "http.public_url",
        "log.format",
        "dispatch.deadline_ms",
        "dispatch.max_in_flight_per_connection",
        "node.ehlo_name",
        "telemetry.otlp_endpoint",
        "telemetry.trace_sample_ratio",
        "ANGARIUM_LISTEN",
    ] {
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
    }
    assert!(!message.contains("`queue.lease_ms` ("), "what depends on a wrong setting is not judged: {message}");
}

#[test]
fn missing_files_are_named_together_with_wrong_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("angarium.toml");
    let toml = "[database]\nurl = 'mysql://x'\n[secrets]\nkey_file = '/nowhere/key'\n[rules]\nfolder = '/nowhere/rules'\n\
                [providers]\nfolder = '/nowhere/p'\n[tls]\nca_file = '/nowhere/ca.pem'";
    std::fs::write(&path, toml).unwrap();
    let message = Config::load_with_files(Some(&path), &FlagSettings::default()).unwrap_err().to_string();
    for key in ["database.url", "secrets.key_file", "rules.folder", "providers.folder", "tls.ca_file"] {
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
    }
    assert!(message.contains("/nowhere/ca.pem"), "{message}");
}

#[test]
fn a_missing_or_broken_key_is_refused() {
    assert!(defaults().secrets.keyring().unwrap_err().to_string().contains("openssl rand -base64 32"));
    let keyring = |toml| assemble(toml, &[DATABASE]).unwrap().secrets.keyring().unwrap_err().to_string();
    assert!(keyring("[secrets]\nkey = 'c2hvcnQ='").contains("`secrets.key`"));
    assert!(keyring("[secrets]\nkey = 'c2hvcnQ='\nkey_file = 'x'").contains("keep one"));
}

// ── Values ────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn every_default_is_allowed() {
    let defaults = serde_json::to_value(defaults()).unwrap();
    for setting in SETTINGS.iter().filter(|setting| setting.key != "database.url") {
        let text = match defaults.pointer(&format!("/{}", setting.key.replace('.', "/"))).unwrap() {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        setting.check(&text).unwrap_or_else(|problem| panic!("{}: {problem}", setting.key));
    }
}

#[test]
fn a_filter_of_the_log_has_levels_and_modules_with_levels() {
    for good in ["info", "info,angarium::dispatch=debug", "WARN", "angarium[attempt{id=1}]=trace", "off"] {
        checks::log_filter(good).unwrap();
    }
    for (bad, given) in [("", "``"), ("inof", "`inof`"), ("info, angarium", "`angarium`"), ("info,", "``")] {
        assert!(checks::log_filter(bad).unwrap_err().contains(given), "{bad}");
    }
    checks::log_filter("angarium=loud").unwrap_err();
}

#[test]
fn secrets_are_neither_shown_nor_printed() {
    let toml = "[secrets]\nkey = 'c2VjcmV0'\n[database]\n\
                url = 'postgres://u:hunter2@h/d?sslmode=require&sslpassword=hunter3'\n\
                [telemetry]\notlp_endpoint = 'https://me:hunter4@collector'";
    let config = assemble(toml, &[]).unwrap();
    let shown = serde_json::to_value(&config).unwrap();
    assert_eq!(shown["database"]["url"], "postgres://u:***@h/d?sslmode=require&sslpassword=***");
    assert_eq!(shown["telemetry"]["otlp_endpoint"], "https://me:***@collector/");
    assert_eq!(shown["secrets"]["key"], "***");
    assert_eq!(shown["roles"], serde_json::json!(["api", "dispatch"]));
    for text in [shown.to_string(), format!("{config:?}")] {
        assert!(!text.contains("hunter") && !text.contains("c2VjcmV0"), "{text}");
    }
}

#[test]
fn only_exact_origins_may_call_from_a_browser() {
    for good in ["https://console.example.org", "http://127.0.0.1:3000", "https://a.example:8443", "http://[::1]:1"] {
        checks::origin(good).unwrap();
    }
    for bad in [
        "*",
        "null",
        "",
        "console.example.org",
        "https://a.example/",
        "https://a.example/x",
        "https://A.example",
        "https://a.example:443",
        "https://*.example.org",
        "https://u@a.example",
        "ftp://a.example",
        "https://b\u{fc}r.example",
    ] {
        let message = refusal(&format!("[http]\ncors_origins = ['{bad}']"), &[DATABASE]);
        assert!(message.contains("`http.cors_origins`"), "{message}");
    }
    let listed = [DATABASE, ("ANGARIUM_HTTP__CORS_ORIGINS", "https://a.example,https://b.example")];
    assert_eq!(assemble("", &listed).unwrap().http.cors_origins, ["https://a.example", "https://b.example"]);
}

#[test]
fn connections_leave_files_for_others() {
    let http = defaults().http;
    assert_eq!((http.connection_limit(1_024), http.connection_limit(1 << 20)), (512, MAX_CONNECTIONS));
    assert_eq!((http.connection_limit_per_address(512), http.connection_limit_per_address(1)), (256, 1));
    let toml = "[http]\nmax_connections = 100\nmax_connections_per_address = 1000";
    let http = assemble(toml, &[DATABASE]).unwrap().http;
    assert_eq!((http.connection_limit(1 << 20), http.connection_limit_per_address(100)), (100, 100));
}

#[test]
fn a_class_that_is_not_named_is_kept_for_the_defaults() {
    let short = RetentionClass { ledger_days: 7, content_days: 1 };
    let from_file = assemble("[retention.classes.short]\nledger_days = 7\ncontent_days = 1", &[DATABASE]);
    let variable = ("ANGARIUM_RETENTION__CLASSES", "short = { ledger_days = 7, content_days = 1 }");
    for config in [from_file, assemble("", &[DATABASE, variable])] {
        let classes = config.unwrap().retention.classes;
        assert_eq!(classes.get("short"), Some(short));
        assert_eq!(classes.get("default"), Some(RetentionClass::default()));
        assert_eq!((classes.get("none"), classes.longest_ledger_days()), (None, 90));
    }
    let message = refusal("[retention.classes]\nodd = { ledger_days = 7 }\neven = { days = 1 }", &[DATABASE]);
    assert!(message.contains("`odd`") && message.contains("`even`"), "{message}");
}
