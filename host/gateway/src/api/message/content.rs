//! `/v1/messages/{id}/content` and its attachments: what was sent, read back.

use std::str::FromStr;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{
        App,
        auth::{ContentRead, Tenant},
        json::Json,
        problem::{Problem, ProblemBody},
        request::UrlPath,
    },
    message_id,
};
use crate::app::message_content::{self, AttachmentReader};
use angarium_domain::{
    legs::{Leg, MOST as MOST_LEGS},
    message::Content,
    provider::BlobInfo,
};

/// The content of a message as it was accepted, after rules have changed it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MessageContent)]
pub struct ContentAnswer {
    #[schema(example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    message: String,
    /// One entry for each of the message's channels, in order.
    parts: Vec<PartAnswer>,
}

/// The content for one channel.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContentPart)]
pub struct PartAnswer {
    /// The place of the channel, from 0.
    leg: u8,
    channel: String,
    /// Null if the connection names the recipient.
    to: Option<String>,
    #[schema(value_type = Object)]
    content: Content,
    attachments: Vec<AttachmentAnswer>,
}

/// An attachment without its bytes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AttachmentInfo)]
pub struct AttachmentAnswer {
    /// Its number in the path of its bytes, from 0.
    number: u32,
    name: String,
    media_type: String,
    /// The name that the HTML uses after `cid:`.
    content_id: Option<String>,
    /// In bytes.
    size: u64,
}

impl PartAnswer {
    fn new(number: u8, leg: Leg, attachments: Vec<BlobInfo>) -> Self {
        Self {
            leg: number,
            channel: leg.channel.as_str().to_owned(),
            to: leg.to.map(|to| to.address),
            content: leg.content,
            attachments: attachments.into_iter().map(AttachmentAnswer::from).collect(),
        }
    }
}

impl From<BlobInfo> for AttachmentAnswer {
    fn from(info: BlobInfo) -> Self {
        let BlobInfo { id, name, media_type, size, content_id } = info;
        Self { number: id, name, media_type, content_id, size: size as u64 }
    }
}

/// Show the content of a message.
///
/// Each reading is in the audit.
#[utoipa::path(get, path = "/v1/messages/{id}/content", tag = "messages", operation_id = "getMessageContent",
    params(("id" = String, Path, description = "`msg_…`")),
    responses(
        (status = 200, description = "The whole content, and the attachments without their bytes.", body = ContentAnswer),
        (status = 409, description = "The content was purged.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn content(
    tenant: Tenant<ContentRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Response, Problem> {
    let id = message_id(&id)?;
    let content = message_content::read(&app, &tenant.principal(), id).await?;
    let part = |(number, (leg, files))| PartAnswer::new(number, leg, files);
    let parts = (0..).zip(content.legs).map(part).collect();
    // The memory is counted until the answer is made, and from then on with the other answers.
    let _permit = content.permit;
    Ok(Json(ContentAnswer { message: id.to_string(), parts }).into_response())
}

/// Download an attachment of a message.
///
/// Each download is in the audit.
#[utoipa::path(get, path = "/v1/messages/{id}/attachments/{leg}/{number}", tag = "messages", operation_id = "getAttachment",
    params(
        ("id" = String, Path, description = "`msg_…`"),
        ("leg" = u8, Path, description = "The place of the channel, from 0.", maximum = 15),
        ("number" = u32, Path, description = "The attachment's number, as the content lists it."),
    ),
    responses(
        (status = 200, description = "The bytes.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 409, description = "The content was purged.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn attachment(
    tenant: Tenant<ContentRead>,
    State(app): State<App>,
    UrlPath((id, leg, number)): UrlPath<(String, String, String)>,
) -> Result<Response, Problem> {
    let id = message_id(&id)?;
    let leg = plain_number::<u8>(&leg).filter(|leg| usize::from(*leg) < MOST_LEGS);
    let (Some(leg), Some(number)) = (leg, plain_number(&number)) else { return Err(Problem::not_found("attachment")) };
    let reader = message_content::attachment(&app, &tenant.principal(), id, leg, number).await?;
    let length = HeaderValue::from(reader.info.size as u64);
    let mut response = Body::from_stream(pieces(reader)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length);
    // A browser must not take a stranger's file for a page of the gateway's.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// Reads a number in its only form: `+1` and `01` are none.
fn plain_number<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

fn pieces(reader: AttachmentReader) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    stream::try_unfold(reader, |mut reader| async move {
        let piece = reader.next().await.map_err(std::io::Error::other)?;
        Ok(piece.map(|piece| (Bytes::from(piece), reader)))
    })
}
