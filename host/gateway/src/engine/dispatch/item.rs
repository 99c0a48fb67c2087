//! A message as a provider sees it.

use std::{borrow::Cow, collections::BTreeMap};

use angarium_domain::{
    ids::DeliveryId,
    legs::Leg,
    message::{Address, Attachment, Content, address::comparable},
    provider::{BlobInfo, Item},
    transmission::{Blob, Kv, Mailbox},
};

/// The provider's view of a delivery: a leg with its whole content. The key is the delivery's id: the same for every try.
pub fn item(delivery: DeliveryId, leg: &Leg, content: &Content, blobs: Vec<BlobInfo>) -> Item {
    Item {
        id: delivery.to_string(),
        key: delivery.to_string(),
        channel: leg.channel.as_str().to_owned(),
        sender: content.from.as_ref().map(mailbox),
        reply_to: content.reply_to.iter().map(mailbox).collect(),
        to: leg.to.iter().map(mailbox).collect(),
        cc: copies(&content.cc, leg.to.iter()),
        bcc: copies(&content.bcc, leg.to.iter().chain(&content.cc)),
        subject: content.subject.clone(),
        text: content.text.clone(),
        html: content.html.clone(),
        payload: content.payload.as_ref().map(|payload| payload.get().to_owned()),
        headers: kvs(&content.headers),
        params: kvs(&content.params),
        media_urls: content.media_urls.clone(),
        blobs,
    }
}

/// A message's attachments under the ids that the provider refers to.
pub fn blobs(attachments: Vec<Attachment>) -> Vec<Blob> {
    let blob = |(id, it): (u32, Attachment)| Blob {
        id,
        name: it.name,
        media_type: it.media_type,
        content_id: it.content_id,
        bytes: it.content,
    };
    (0..).zip(attachments).map(blob).collect()
}

/// Returns the copies that are not named before: no mailbox gets a mail twice, and services refuse a request that names
/// one twice.
fn copies<'a>(list: &[Address], before: impl Iterator<Item = &'a Address>) -> Vec<Mailbox> {
    let mut named: Vec<Cow<'_, str>> = before.map(|it| comparable(&it.address)).collect();
    let mut copies = Vec::with_capacity(list.len());
    for address in list {
        let form = comparable(&address.address);
        if !named.contains(&form) {
            copies.push(mailbox(address));
            named.push(form);
        }
    }
    copies
}

fn mailbox(address: &Address) -> Mailbox {
    Mailbox { value: address.address.clone(), name: address.name.clone() }
}

fn kvs(map: &BTreeMap<String, String>) -> Vec<Kv> {
    map.iter().map(|(name, value)| Kv { name: name.clone(), value: value.clone() }).collect()
}

/// Returns the data about an attachment that a provider receives.
pub fn blob_info(blob: &Blob) -> BlobInfo {
    BlobInfo {
        id: blob.id,
        name: blob.name.clone(),
        media_type: blob.media_type.clone(),
        size: blob.bytes.len() as f64,
        content_id: blob.content_id.clone(),
    }
}
