//! Where a connection's requests go, as far as its config decides. Pure.
//!
//! A secret is given for the destinations that its connection has at that time. A person that may change the config
//! must not be able to redirect the secret and read it elsewhere, so a change that adds a destination requires the
//! secrets again.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use url::Url;

use super::provider::Descriptor;

/// A property of the config's schema that says whether the field decides where, or how safely, requests go.
const DECIDES: &str = "destination";

/// Whether a change of a connection's config sends its requests, and so its secrets, to a destination that they did not
/// go to before: another scheme, host or port, or another value of a field that the provider's schema marks with
/// `"destination": true`, such as a port or the kind of TLS.
///
/// If the provider may call any host below a domain (`*.example.com`), every field may choose the host: each one counts
/// that the schema does not mark with `"destination": false`.
#[must_use]
pub fn adds_a_destination(descriptor: &Descriptor, before: &Value, after: &Value) -> bool {
    let schema = Schema::of(descriptor);
    schema.fields_that_decide().any(|field| schema.value(before, field) != schema.value(after, field))
        || !schema.destinations(after).is_subset(&schema.destinations(before))
}

struct Schema<'a> {
    hosts: &'a [String],
    properties: Option<&'a Map<String, Value>>,
}

impl<'a> Schema<'a> {
    fn of(descriptor: &'a Descriptor) -> Self {
        Self { hosts: &descriptor.hosts, properties: descriptor.config_schema["properties"].as_object() }
    }

    /// The fields of which each change is a new destination. Fields with a host are compared as hosts.
    fn fields_that_decide(&self) -> impl Iterator<Item = &'a str> {
        let any_host = self.hosts.iter().any(|pattern| pattern.starts_with("*."));
        let hosts: Vec<&str> = self.host_fields().collect();
        let fields = self.properties.into_iter().flatten();
        fields.filter_map(move |(name, field)| {
            let marked = field.get(DECIDES).and_then(Value::as_bool);
            (marked.unwrap_or(any_host) && !hosts.contains(&name.as_str())).then_some(name.as_str())
        })
    }

    /// The fields that `{config.field}` names.
    fn host_fields(&self) -> impl Iterator<Item = &'a str> {
        self.hosts.iter().filter_map(|pattern| pattern.strip_prefix("{config.")?.strip_suffix('}'))
    }

    /// The value of a field, or its default; dots lead into objects.
    fn value<'c>(&self, config: &'c Value, field: &str) -> Option<&'c Value>
    where
        'a: 'c,
    {
        let given = field.split('.').try_fold(config, |value, field| value.get(field));
        given.or_else(|| self.properties?.get(field)?.get("default"))
    }

    /// The provider's own hosts, and those that the config names.
    fn destinations(&self, config: &Value) -> BTreeSet<String> {
        let own = self.hosts.iter().filter(|pattern| !pattern.contains(['*', '{']));
        let own = own.map(|host| destination(&format!("https://{host}")));
        let named = self.host_fields().filter_map(|field| self.value(config, field)?.as_str());
        own.chain(named.map(destination)).collect()
    }
}

/// A URL's scheme, host and port; of a text without a scheme, the whole of it.
fn destination(text: &str) -> String {
    origin(text).unwrap_or_else(|| text.trim_end_matches('.').to_lowercase())
}

/// A URL's scheme, host and port; `None` of any other text.
#[must_use]
pub fn origin(text: &str) -> Option<String> {
    let url = Url::parse(text).ok().filter(|url| text.contains("://") && url.has_host())?;
    let host = url.host_str()?.trim_end_matches('.');
    Some(format!("{}://{host}:{}", url.scheme(), url.port_or_known_default().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::Deduplication;

    fn provider(hosts: &[&str], properties: Value) -> Descriptor {
        Descriptor {
            name: "acme".to_owned(),
            version: "1.0.0".to_owned(),
            summary: String::new(),
            channels: Vec::new(),
            config_schema: json!({ "type": "object", "properties": properties }),
            secrets: Vec::new(),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            deduplication: Deduplication::None,
            cost_model: json!({}),
            max_batch: 1,
            ext: json!({}),
        }
    }

    fn url_changes(before: Value, after: Value) -> bool {
        let provider = provider(&["{config.url}", "{to}"], json!({ "url": {}, "method": {} }));
        adds_a_destination(&provider, &before, &after)
    }

    #[test]
    fn another_origin_is_a_destination_and_another_path_is_none() {
        let own = || json!({"url": "https://hooks.example.org/in", "method": "post"});
        for url in [
            "https://hooks.example.org/other?x=1",
            "https://HOOKS.example.org:443/",
            "HTTPS://hooks.example.org./in",
            "https:\\\\hooks.example.org\\in",
        ] {
            let moved = url_changes(own(), json!({"url": url, "method": "put"}));
            assert_eq!(moved, !url.contains("://"), "{url}");
        }
        for url in [
            "https://hooks.example.org:8443/in",
            "http://hooks.example.org/in",
            "https://hooks.example.org.evil.example/in",
            "https://hooks.example.org@evil.example/in",
            "https://evil.example\\@hooks.example.org/in",
            "https://evil.example/in",
            "https://127.0.0.1/in",
            "nonsense",
        ] {
            assert!(url_changes(own(), json!({ "url": url })), "{url}");
        }
        assert!(!url_changes(own(), json!({})), "one less is none more");
        assert!(url_changes(json!({}), own()), "and one more is");
    }

    #[test]
    fn a_host_with_its_port_and_security_is_a_destination() {
        let properties = json!({
            "host": {}, "from": {}, "port": {"destination": true}, "tls": {"default": "starttls", "destination": true},
        });
        let mail = provider(&["{config.host}"], properties);
        let before = json!({"host": "mail.example.org", "from": "a@example.org"});
        let moved = |change: Value| {
            let mut after = before.clone();
            after.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            adds_a_destination(&mail, &before, &after)
        };
        assert!(!moved(json!({"from": "b@example.org"})) && !moved(json!({"host": "MAIL.example.org."})));
        assert!(!moved(json!({"tls": "starttls"})), "that is the default");
        for change in [
            json!({"host": "mail.evil.example"}),
            json!({"port": 2525}),
            json!({"tls": "opportunistic"}),
            json!({"tls": "none"}),
        ] {
            assert!(moved(change.clone()), "{change}");
        }
    }

    #[test]
    fn the_providers_own_hosts_are_no_news() {
        let properties = json!({"base_url": {"default": "https://api.acme.example"}, "from": {}});
        let acme = provider(&["api.acme.example", "{config.base_url}"], properties);
        let moved = |before: Value, after: Value| adds_a_destination(&acme, &before, &after);
        let own = json!({"base_url": "https://api.acme.example/"});
        assert!(!moved(json!({}), own.clone()) && !moved(own, json!({"from": "x"})));
        assert!(moved(json!({}), json!({"base_url": "https://eu.acme.example"})));
        assert!(!moved(json!({"base_url": "https://eu.acme.example"}), json!({})));
        assert!(moved(json!({}), json!({"base_url": "http://api.acme.example"})), "without TLS");
    }

    #[test]
    fn below_a_domain_every_field_may_choose_the_host() {
        let properties = json!({"account": {}, "from": {"destination": false}});
        let acme = provider(&["*.acme.example"], properties.clone());
        let moved =
            |acme: &Descriptor, after: Value| adds_a_destination(acme, &json!({"account": "a", "from": "x"}), &after);
        assert!(moved(&acme, json!({"account": "b", "from": "x"})));
        assert!(!moved(&acme, json!({"account": "a", "from": "y"})));
        let fixed = provider(&["api.acme.example"], properties);
        assert!(!moved(&fixed, json!({"account": "b", "from": "y"})));
    }
}
