//! What was sent, read back. Each reading is in the audit.

use serde_json::json;

use super::{App, Principal, Result, error::UseCaseError};
use crate::engine::admission::AdmitError;
use angarium_domain::{
    audit::Action,
    ids::{DeliveryId, MessageId, TenantId},
    legs::Leg,
    provider::BlobInfo,
};
use angarium_store::{
    audit::AuditEntry,
    message::{MessageView, attachment_chunk, attachment_list, content_size, message_get, message_whole},
};
use angarium_transport::byte_budget::BytePermit;

/// The whole content of a message, and the memory that it may take.
pub struct MessageContent {
    /// Each leg with its attachments, in their order and without their bytes.
    pub legs: Vec<(Leg, Vec<BlobInfo>)>,
    pub permit: Option<BytePermit>,
}

const MISSING: UseCaseError = UseCaseError::NotFound("message");

/// Reads a message's content.
///
/// # Errors
/// `content_purged` where it is gone.
pub async fn read(app: &App, by: &Principal, id: MessageId) -> Result<MessageContent> {
    let mut change = app.changes.begin(by).await?;
    present(message_get(&mut change, by.tenant, id).await?)?;
    let (size, _) = content_size(&mut change, by.tenant, id, id.first_delivery()).await?.ok_or(MISSING)?;
    let permit = app.admission.permit_for(by.tenant, size).map_err(|error| match error {
        AdmitError::Busy => UseCaseError::Unavailable("too many large contents of this tenant are being read"),
        other => UseCaseError::internal(&other),
    })?;
    let whole = message_whole(&mut change, by.tenant, id).await?.ok_or(MISSING)?;
    let mut legs = Vec::new();
    for (number, leg) in (0..).zip(whole.legs) {
        let attachments = attachment_list(&mut change, by.tenant, id.leg(number)).await?;
        legs.push((leg, attachments));
    }
    change.commit(AuditEntry::new(Action::ContentRead, id)).await?;
    Ok(MessageContent { legs, permit })
}

/// An attachment that is read piece by piece.
pub struct AttachmentReader {
    app: App,
    tenant: TenantId,
    leg: DeliveryId,
    pub info: BlobInfo,
    read: usize,
}

/// Begins to read an attachment of one of a message's legs.
///
/// # Errors
/// `content_purged` where it is gone.
pub async fn attachment(app: &App, by: &Principal, id: MessageId, leg: u8, number: u32) -> Result<AttachmentReader> {
    let mut change = app.changes.begin(by).await?;
    present(message_get(&mut change, by.tenant, id).await?)?;
    // The entry outlasts the content, of which the file's name is a part.
    let entry = AuditEntry::new(Action::ContentRead, id).after(json!({"leg": leg, "attachment": number}));
    let leg = id.leg(leg);
    let listed = attachment_list(&mut change, by.tenant, leg).await?;
    let info = listed.into_iter().find(|it| it.id == number).ok_or(UseCaseError::NotFound("attachment"))?;
    change.commit(entry).await?;
    Ok(AttachmentReader { app: app.clone(), tenant: by.tenant, leg, info, read: 0 })
}

/// The bytes of one piece.
const PIECE: usize = 256 << 10;

impl AttachmentReader {
    /// Returns the next piece; `None` at the end.
    ///
    /// # Errors
    /// When the database fails, or the content was purged meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.read as f64 >= self.info.size {
            return Ok(None);
        }
        let mut txn = self.app.store.tenant(self.tenant).await?;
        let piece = attachment_chunk(&mut txn, self.tenant, self.leg, self.info.id, self.read, PIECE).await?;
        let piece = piece.filter(|piece| !piece.is_empty()).ok_or_else(purged)?;
        self.read += piece.len();
        Ok(Some(piece))
    }
}

fn present(view: Option<MessageView>) -> Result<()> {
    if view.ok_or(MISSING)?.content_purged_at.is_some() { Err(purged()) } else { Ok(()) }
}

fn purged() -> UseCaseError {
    UseCaseError::conflict("content_purged", "the message's content was purged")
}
