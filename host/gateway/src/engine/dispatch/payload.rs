//! The content of a large message. It is not in memory while its delivery waits: it is read when a request is made of
//! it, once the byte budget permits that, and leaves memory with the request. A small content stays with its message.

use std::{pin::pin, time::Instant};

use bytes::Bytes;

use super::{Dispatcher, PAUSE};
use crate::engine::queue::Work;
use angarium_domain::{
    attempt::Verdict,
    ids::{DeliveryId, TenantId},
    message::Content,
    outcome::host_verdict,
    provider::{BlobInfo, Disposition},
    transmission::Blob,
};
use angarium_store::{
    self as store, StoreError,
    message::{attachment_list, attachment_load, content_size, message_whole},
};
use angarium_transport::byte_budget::BytePermit;

/// How often a body is in memory at a time, at the most, while a request is made of it: as it was read, as the component
/// is given it, within the component, which may build it piece by piece, and as it leaves.
pub(super) const BODY_COPIES: usize = 8;

/// The same of attachments, which no component sees: as they were read, as they are encoded, and as they leave.
pub(super) const BLOB_COPIES: usize = 4;

/// The delivery is no longer this node's: its lease was lost.
#[derive(Debug)]
pub(super) struct Lost;

/// The content of a request, beside the message in memory.
#[derive(Debug, Default)]
pub(super) struct Payload {
    /// The whole content, of a message that is abridged.
    pub content: Option<Content>,
    /// Its attachments' data; their bytes are read for the request that carries them.
    pub files: Vec<BlobInfo>,
    pub permit: Option<BytePermit>,
}

impl Dispatcher {
    /// Waits until the content of a large message may be held in memory.
    pub(super) async fn permit(&self, work: &Work) -> Result<Option<BytePermit>, Lost> {
        if !work.message.is_large() {
            return Ok(None);
        }
        // Rare: boxed, so that every delivery's future stays small.
        Box::pin(async {
            let size = loop {
                match self.size(work).await {
                    Err(error) if error.passes() => wait(work, &error).await?,
                    // A read error appears when the content is read: there is nothing to wait for.
                    read => break read.ok().flatten(),
                }
            };
            let (body, files) = size.unwrap_or_default();
            Ok(Some(self.bytes.take(work.tenant, BODY_COPIES * body + BLOB_COPIES * files).await))
        })
        .await
    }

    /// Reads the parts of a message that are not in memory, however long the database is away; returns the verdict if
    /// they cannot be read.
    pub(super) async fn payload(
        &self,
        work: &Work,
        permit: Option<BytePermit>,
    ) -> Result<Result<Payload, Verdict>, Lost> {
        if permit.is_none() {
            return Ok(Ok(Payload::default()));
        }
        Box::pin(async {
            let read = loop {
                match self.read(work).await {
                    Err(error) if error.passes() => wait(work, &error).await?,
                    read => break read,
                }
            };
            Ok(match read {
                Ok(Some(payload)) => Ok(Payload { permit, ..payload }),
                Ok(None) => Err(unreadable("it is no longer in the database")),
                Err(error) => Err(unreadable(&error.to_string())),
            })
        })
        .await
    }

    async fn size(&self, work: &Work) -> store::Result<Option<(usize, usize)>> {
        let mut txn = self.store.tenant(work.tenant).await?;
        content_size(&mut txn, work.tenant, work.message.id, work.delivery).await
    }

    /// `None` if the message is gone.
    async fn read(&self, work: &Work) -> store::Result<Option<Payload>> {
        let mut payload = Payload::default();
        let mut txn = self.store.tenant(work.tenant).await?;
        if work.message.first().attachments > 0 {
            payload.files = attachment_list(&mut txn, work.tenant, work.delivery).await?;
        }
        if work.message.abridged {
            let number = work.delivery.leg_of(work.message.id).into();
            let whole = message_whole(&mut txn, work.tenant, work.message.id).await?;
            let Some(leg) = whole.and_then(|whole| whole.legs.into_iter().nth(number)) else { return Ok(None) };
            payload.content = Some(leg.content);
        }
        Ok(Some(payload))
    }

    /// Reads the attachments that a request carries, until its deadline at the latest.
    pub(super) async fn blobs(
        &self,
        of: (TenantId, DeliveryId),
        files: &[BlobInfo],
        deadline: Instant,
    ) -> Result<Vec<Blob>, Verdict> {
        let (tenant, delivery) = of;
        let places: Vec<u32> = files.iter().map(|file| file.id).collect();
        let read = pin!(async {
            loop {
                match self.attachments(tenant, delivery, &places).await {
                    Err(error) if error.passes() => tokio::time::sleep(PAUSE).await,
                    read => return read,
                }
            }
        });
        let bytes = match tokio::time::timeout_at(deadline.into(), read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(unreadable(&error.to_string())),
            Err(_) => return Err(unreadable("the database did not answer before the deadline")),
        };
        let blob = |(id, bytes)| {
            let file = files.iter().find(|file| file.id == id)?;
            Some(Blob {
                id,
                name: file.name.clone(),
                media_type: file.media_type.clone(),
                content_id: file.content_id.clone(),
                bytes,
            })
        };
        Ok(bytes.into_iter().filter_map(blob).collect())
    }

    async fn attachments(
        &self,
        tenant: TenantId,
        delivery: DeliveryId,
        places: &[u32],
    ) -> store::Result<Vec<(u32, Bytes)>> {
        let mut txn = self.store.tenant(tenant).await?;
        attachment_load(&mut txn, tenant, delivery, places).await
    }
}

/// Waits a moment before the database is asked again.
async fn wait(work: &Work, error: &StoreError) -> Result<(), Lost> {
    tracing::warn!(%error, delivery.id = %work.delivery, "a delivery waits for its content");
    tokio::time::sleep(PAUSE).await;
    if work.lease.is_lost() { Err(Lost) } else { Ok(()) }
}

/// Nothing of this request was sent.
fn unreadable(why: &str) -> Verdict {
    host_verdict(Disposition::NotSent, "content_unavailable", format!("its content can't be read: {why}"))
}
