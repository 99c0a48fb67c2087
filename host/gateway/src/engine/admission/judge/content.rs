//! Refuses at acceptance the messages that would be refused later: those that no candidate takes by its provider's
//! descriptor. It must not call a component: a message whose providers have no content schema costs one look at each.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::Admission;
use crate::node::tenant_config::TenantConfig;
use angarium_domain::{
    ids::{ConnectionId, TenantId},
    legs::Leg,
    message::{Address, Attachment, Content, NewMessage},
    problem::ValueProblem,
    rule_input::beginning,
};
use angarium_rules::script::Hook;
use angarium_runtime::Component;

impl Admission {
    /// Returns the faults of a message's content that every candidate finds; empty if one candidate may take it.
    pub(super) fn content_problems(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        new: &NewMessage,
    ) -> Vec<ValueProblem> {
        let legs = &new.message.legs;
        let mut problems = Vec::new();
        for (number, leg) in (0..).zip(legs.iter()) {
            let pointer = legs.pointer(number);
            let within = self.part_problems(tenant, config, new, &Part { number, leg }).into_iter();
            problems.extend(within.map(|it| ValueProblem { pointer: format!("{pointer}{}", it.pointer), ..it }));
        }
        problems
    }

    fn part_problems(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        new: &NewMessage,
        part: &Part<'_>,
    ) -> Vec<ValueProblem> {
        let channel = part.leg.channel.as_str();
        let Some(components) = self.components(tenant, config, part) else { return Vec::new() };
        let message = part.as_json(new);
        let mut found: Vec<ValueProblem> = Vec::new();
        for component in components {
            let mut problems = component.content_problems(channel, &message);
            problems.retain(|it| it.code == "too_long" || !part.is_cut(&it.pointer));
            if problems.is_empty() {
                return Vec::new();
            }
            let known =
                |it: &ValueProblem| found.iter().any(|known| known.pointer == it.pointer && known.code == it.code);
            let further: Vec<_> = problems.into_iter().filter(|it| !known(it)).collect();
            found.extend(further);
        }
        found
    }

    /// Returns the components of all possible candidates, each once; `None` if one of them is unknown, or has no
    /// content schema.
    fn components(&self, tenant: TenantId, config: &TenantConfig, part: &Part<'_>) -> Option<Vec<Arc<Component>>> {
        let mut components: Vec<Arc<Component>> = Vec::new();
        for connection in candidates(config, part)? {
            let endpoint = config.endpoints.get(&connection)?;
            let component = self.providers.serving_for(&endpoint.connection.provider, tenant)?.component;
            if !component.tells_content(part.leg.channel.as_str()) {
                return None;
            }
            if components.iter().all(|it| it.digest() != component.digest()) {
                components.push(component);
            }
        }
        Some(components)
    }
}

/// Returns the possible candidates; `None` if a script decides later.
fn candidates(config: &TenantConfig, part: &Part<'_>) -> Option<Vec<ConnectionId>> {
    if let Some(connection) = part.leg.connection {
        return Some(vec![connection]);
    }
    let route = config.routes.get(&part.leg.channel)?;
    let is_open = config.rulebook.as_ref().is_some_and(|book| book.may_run(Hook::Route));
    (!is_open).then(|| route.spec.candidates.iter().map(|it| it.connection).collect())
}

/// One leg of a message.
struct Part<'a> {
    number: u8,
    leg: &'a Leg,
}

impl Part<'_> {
    /// Whether this names a text of which the schema sees only the beginning.
    fn is_cut(&self, pointer: &str) -> bool {
        let content = &self.leg.content;
        let texts = [("/content/text", &content.text), ("/content/html", &content.html)];
        let cut = |text: &String| beginning(text).len() < text.len();
        texts.into_iter().any(|(slot, text)| slot == pointer && text.as_ref().is_some_and(cut))
    }

    /// Returns the message in the form for a descriptor's schema: with the names of the API. Addresses are texts, a
    /// payload is only present or not, attachments have their properties, and long texts are cut, because a message may
    /// be large.
    fn as_json(&self, new: &NewMessage) -> Value {
        let Leg { to, content, .. } = self.leg;
        let files = new.attachments.iter().filter(|file| file.leg == self.number);
        let mut message = Map::new();
        put(&mut message, "to", to.as_ref().map(|to| json!(to.address)));
        message.insert("content".to_owned(), content_as_json(content, files.map(file_as_json).collect()));
        Value::Object(message)
    }
}

fn content_as_json(content: &Content, attachments: Vec<Value>) -> Value {
    let list = |list: Vec<Value>| Some(Value::Array(list)).filter(|list| *list != json!([]));
    let people = |people: &[Address]| list(people.iter().map(|it| json!(it.address)).collect());
    let mut members = Map::new();
    put(&mut members, "from", content.from.as_ref().map(|it| json!(it.address)));
    put(&mut members, "reply_to", people(&content.reply_to));
    put(&mut members, "cc", people(&content.cc));
    put(&mut members, "bcc", people(&content.bcc));
    put(&mut members, "subject", content.subject.as_ref().map(|subject| json!(subject)));
    put(&mut members, "text", content.text.as_deref().map(|text| json!(beginning(text))));
    put(&mut members, "html", content.html.as_deref().map(|html| json!(beginning(html))));
    put(&mut members, "payload", content.payload.as_ref().map(|_| json!(true)));
    put(&mut members, "headers", Some(json!(content.headers)).filter(|_| !content.headers.is_empty()));
    put(&mut members, "params", Some(json!(content.params)).filter(|_| !content.params.is_empty()));
    put(&mut members, "media_urls", list(content.media_urls.iter().map(|url| json!(url)).collect()));
    put(&mut members, "attachments", list(attachments));
    Value::Object(members)
}

fn file_as_json(file: &Attachment) -> Value {
    let mut members = Map::new();
    put(&mut members, "name", Some(json!(file.name)));
    put(&mut members, "media_type", Some(json!(file.media_type)));
    put(&mut members, "content_id", file.content_id.as_ref().map(|id| json!(id)));
    put(&mut members, "size", Some(json!(file.content.len())));
    Value::Object(members)
}

fn put(members: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        members.insert(name.to_owned(), value);
    }
}
