//! The message of a script's follow-up: parts that it leaves out are as in the message before it. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;

use angarium_domain::{
    ids::MessageId,
    legs::{Leg, Legs},
    message::{Address, Body, Channel, Content, Follows, MAX_SUBJECT, Message, address},
    rule_input::{self, Object},
};
use angarium_rules::script::FollowUpMessage;

/// The message before: with all its channels, and as the channel that ended sees it.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    pub whole: &'a Message,
    pub message: &'a Message,
    /// The whole content of that channel.
    pub content: &'a Content,
}

/// The message, or why it is none.
pub fn follow_up(
    before: Before<'_>,
    id: MessageId,
    wanted: &FollowUpMessage,
    follows: Follows,
    asked_at: Timestamp,
) -> Result<Message, String> {
    let of = before.message;
    let leg = of.first();
    let channel = wanted.channel.clone().unwrap_or_else(|| leg.channel.clone());
    let same = channel == leg.channel;
    let to = match &wanted.to {
        Some(address) => Some(Address { address: address.clone(), name: None }),
        None => recipient(before, &channel),
    };
    check(&channel, to.as_ref(), wanted)?;
    let wait = SignedDuration::try_from(wanted.after).unwrap_or(SignedDuration::ZERO);
    let connection = leg.connection.filter(|_| same);
    let leg = Leg { connection, to, content: content(before.content, same, wanted), ..Leg::on(channel) };
    Ok(Message {
        id,
        created_at: asked_at,
        priority: wanted.priority.unwrap_or(of.priority),
        send_at: if wait.is_zero() { None } else { asked_at.checked_add(wait).ok() },
        expires_at: None,
        reference: of.reference.clone(),
        batch: None,
        ordering_key: None,
        legs: Legs::single(leg),
        abridged: false,
        body: Body {
            attributes: attributes(of, &wanted.attributes)?,
            contact: of.body.contact.clone(),
            context: of.body.context.clone(),
            metadata: of.body.metadata.clone(),
            follows: Some(follows),
            ..Body::default()
        },
    })
}

/// On the same channel the same recipient; on another one that of the message's own leg, else the contact's address,
/// else the same.
fn recipient(before: Before<'_>, channel: &Channel) -> Option<Address> {
    let of = before.message.first();
    if *channel == of.channel {
        return of.to.clone();
    }
    let by_leg = before.whole.legs.iter().find(|leg| leg.channel == *channel).and_then(|leg| leg.to.clone());
    by_leg.or_else(|| by_contact(before.message, channel)).or_else(|| of.to.clone())
}

fn by_contact(of: &Message, channel: &Channel) -> Option<Address> {
    let contact: Object = serde_json::from_str(of.body.contact.as_ref()?.get()).ok()?;
    let member = match channel.as_str() {
        "sms" | "mms" | "whatsapp" | "voice" => "phone",
        other => other,
    };
    let address = contact.get(channel.as_str()).or_else(|| contact.get(member))?.as_str()?;
    Some(Address { address: address.to_owned(), name: None })
}

/// Copies do not go out a second time; on another channel sender and headers have no meaning.
fn content(of: &Content, same: bool, wanted: &FollowUpMessage) -> Content {
    let mut content = Content { cc: Vec::new(), bcc: Vec::new(), ..of.clone() };
    if !same {
        content = Content {
            subject: content.subject,
            text: content.text,
            html: content.html,
            payload: content.payload,
            media_urls: content.media_urls,
            ..Content::default()
        };
    }
    if wanted.subject.is_some() {
        content.subject.clone_from(&wanted.subject);
    }
    if wanted.text.is_some() {
        content.text.clone_from(&wanted.text);
        (content.html, content.payload) = (None, None);
    }
    if let Some(template) = &wanted.template {
        content.params.insert("template".to_owned(), template.clone());
    }
    content
}

/// The message's own attributes, with the script's replacing those of the same name.
fn attributes(of: &Message, added: &Object) -> Result<Option<Box<RawValue>>, String> {
    if added.is_empty() {
        return Ok(of.body.attributes.clone());
    }
    let own = of.body.attributes.as_ref().and_then(|raw| serde_json::from_str::<Object>(raw.get()).ok());
    let mut all = own.unwrap_or_default();
    all.extend(added.clone());
    let raw = serde_json::value::to_raw_value(&all).map_err(|error| error.to_string())?;
    if raw.get().len() > rule_input::MOST_BYTES {
        Err("its attributes exceed 16 KiB".to_owned())
    } else {
        Ok(Some(raw))
    }
}

fn check(channel: &Channel, to: Option<&Address>, wanted: &FollowUpMessage) -> Result<(), String> {
    let name = channel.as_str();
    match to {
        None if address::is_needed(name) => return Err(format!("it has no address for `{name}`")),
        Some(to) => {
            if let Some((_, detail)) = address::fault(&to.address, name == "email") {
                return Err(format!("its address {detail}"));
            }
        }
        None => {}
    }
    let plain = |it: &String| it.chars().count() <= MAX_SUBJECT && !it.chars().any(char::is_control);
    if wanted.subject.as_ref().is_none_or(plain) {
        Ok(())
    } else {
        Err("its subject is too long, or has line breaks".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use angarium_domain::{ids::ConnectionId, message::Priority};

    fn before() -> Message {
        let content = json!({"from": {"address": "SHOP"}, "text": "Your code", "params": {"max_price": "1"},
            "headers": {"X-A": "b"}});
        let leg = Leg {
            connection: Some(ConnectionId::new()),
            to: Some(Address { address: "+46701234567".into(), name: None }),
            content: serde_json::from_value(content).unwrap(),
            attachments: 1,
            ..Leg::on("sms".parse().unwrap())
        };
        Message {
            id: MessageId::with_legs(),
            created_at: Timestamp::UNIX_EPOCH,
            priority: Priority::Normal,
            send_at: None,
            expires_at: Some(Timestamp::UNIX_EPOCH),
            reference: Some("order:1".into()),
            batch: None,
            ordering_key: Some("k".into()),
            legs: Legs::single(leg),
            body: Body {
                attributes: RawValue::from_string(r#"{"amount": 1, "kind": "code"}"#.into()).ok(),
                contact: RawValue::from_string(r#"{"email": "ann@example.org"}"#.into()).ok(),
                ..Body::default()
            },
            abridged: false,
        }
    }

    fn follows(of: &Message) -> Follows {
        Follows { message: of.id, delivery: of.id.first_delivery(), script: "s".into(), depth: 1 }
    }

    fn made(wanted: &FollowUpMessage) -> Result<Message, String> {
        let of = before();
        let before = Before { whole: &of, message: &of, content: &of.first().content };
        follow_up(before, MessageId::with_legs(), wanted, follows(&of), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_is_left_out_is_as_before_but_for_what_would_end_it() {
        let message = made(&FollowUpMessage { after: Duration::from_secs(60), ..Default::default() }).unwrap();
        assert_eq!(message.first().recipient(), "+46701234567");
        assert_eq!(message.first().content.from.as_ref().unwrap().address, "SHOP");
        assert_eq!(message.send_at, Some(Timestamp::from_second(60).unwrap()));
        assert_eq!((message.expires_at, message.ordering_key.as_deref(), message.first().attachments), (None, None, 0));
        assert!(message.first().connection.is_some() && message.reference.is_some());
        assert_eq!(message.depth(), 1);
    }

    #[test]
    fn by_another_channel_the_contact_says_where() {
        let attributes = serde_json::from_value(json!({"kind": "again"})).unwrap();
        let wanted = FollowUpMessage {
            channel: "email".parse().ok(),
            text: Some("By mail".into()),
            template: Some("plain".into()),
            attributes,
            ..Default::default()
        };
        let message = made(&wanted).unwrap();
        assert_eq!(message.first().recipient(), "ann@example.org");
        let content = &message.first().content;
        assert!(content.from.is_none() && content.headers.is_empty() && message.first().connection.is_none());
        assert_eq!((content.text.as_deref(), content.params["template"].as_str()), (Some("By mail"), "plain"));
        let attributes: Object = serde_json::from_str(message.body.attributes.unwrap().get()).unwrap();
        assert_eq!((&attributes["amount"], &attributes["kind"]), (&json!(1), &json!("again")));
    }

    #[test]
    fn what_nobody_could_send_is_none() {
        let mail = || FollowUpMessage { channel: "email".parse().ok(), ..Default::default() };
        let bad = [
            FollowUpMessage { to: Some("nobody".into()), ..mail() },
            FollowUpMessage { to: Some("a\r\nb@x".into()), ..mail() },
            FollowUpMessage { subject: Some("a\nBcc: v@x".into()), ..mail() },
        ];
        assert!(bad.iter().all(|wanted| made(wanted).is_err()));
    }
}
