//! The filter of messages: from the query of a list, or from the body of an action on all that match.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::{
    fields::Fields,
    filter,
    problem::FieldProblem,
    request::{Query, short_text},
};
use crate::app::{self, App, messages::MessageFilter};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{BatchId, TenantId},
    message::{Channel, address::spellings},
};

/// A filter of messages: all of its members must hold.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = MessageFilter, example = json!({"state": "failed", "connection": "main-smtp", "since": "2027-01-31T09:00:00Z"}))]
pub struct Filter {
    state: Option<DeliveryState>,
    /// One of the message's channels.
    #[schema(pattern = "^[a-z][a-z0-9_]{0,31}$", example = "sms")]
    channel: Option<String>,
    /// The recipient; of a message with `channels`, that of the first.
    #[schema(min_length = 1, max_length = 1024)]
    recipient: Option<String>,
    /// A connection's id or uid, of a delivery's last attempt.
    #[schema(min_length = 1, max_length = 128)]
    connection: Option<String>,
    /// Of a delivery's last attempt.
    #[schema(min_length = 1, max_length = 128)]
    provider: Option<String>,
    /// The provider's code, or the gateway's word for it, of a delivery that did not succeed. The message may have been
    /// sent through another of its channels.
    #[schema(min_length = 1, max_length = 1024)]
    code: Option<String>,
    /// Accepted at this time or later.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Accepted before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// The batch that the messages came in with.
    #[schema(min_length = 1, max_length = 64, example = "batch_0192f0c1a2b37c4d8e5f60718293a4b5")]
    batch: Option<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reference: Option<String>,
    /// A member of the metadata as its name, a colon and its value: a text, a number as it was written, or a boolean. A
    /// name with a colon cannot be searched, nor an empty one.
    #[schema(min_length = 3, max_length = 1024, example = "order:A-1001")]
    metadata: Option<String>,
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`Filter::of` reads them; this lists them in the document")]
pub struct FilterParams {
    /// Only messages in this state.
    #[param(value_type = Option<DeliveryState>)]
    state: Option<String>,
    /// Only messages of this channel.
    channel: Option<String>,
    /// Only messages to this recipient; with `channels`, that of the first.
    recipient: Option<String>,
    /// Only messages whose last attempt was through this connection: its id or uid.
    connection: Option<String>,
    /// Only messages whose last attempt was through this provider.
    provider: Option<String>,
    /// Only messages with a delivery that did not succeed, with this code: the provider's, or the gateway's word for it.
    /// With `channels`, the message may have been sent through another.
    code: Option<String>,
    /// Only messages that were accepted at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Only messages that were accepted before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
    /// Only messages of this batch.
    batch: Option<String>,
    /// Only messages with this reference.
    reference: Option<String>,
    /// Only messages with this member of the metadata: its name, a colon and its value, such as `order:A-1001`.
    metadata: Option<String>,
}

const BAD_BATCH: &str = "must be the id of a batch, `batch_…`";
const BAD_MEMBER: &str = "must be a name without colons, a colon and a value, such as `order:A-1001`";

impl Filter {
    pub const fn state(&self) -> Option<DeliveryState> {
        self.state
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        let Self { state, channel, recipient, connection, provider, code, since, until, batch, reference, metadata } =
            self;
        let texts = [channel, recipient, connection, provider, code, batch, reference, metadata];
        state.is_none() && since.is_none() && until.is_none() && texts.into_iter().all(Option::is_none)
    }

    /// Whether a count of what matches would tell something that a message says.
    pub const fn tells_content(&self) -> bool {
        self.recipient.is_some() || self.metadata.is_some() || self.reference.is_some()
    }

    /// Takes the filter from a query.
    pub fn of(query: &mut Query) -> Self {
        Self {
            state: query.take("state", |text| text.parse::<DeliveryState>().map_err(|error| error.to_string())),
            channel: query.take("channel", short_text),
            recipient: query.take("recipient", short_text),
            connection: query.take("connection", short_text),
            provider: query.take("provider", short_text),
            code: query.take("code", short_text),
            since: query.take("since", filter::time),
            until: query.take("until", filter::time),
            batch: query.take("batch", |text| {
                text.parse::<BatchId>().map(|_| text.to_owned()).map_err(|_| BAD_BATCH.to_owned())
            }),
            reference: query.take("reference", short_text),
            metadata: query.take("metadata", |text| {
                short_text(text).and_then(|text| member(&text).map(|_| text).map_err(|()| BAD_MEMBER.to_owned()))
            }),
        }
    }

    /// Returns the filter with its names looked up, or each invalid member by its name.
    pub async fn into_domain(
        self,
        app: &App,
        tenant: TenantId,
    ) -> app::Result<Result<MessageFilter, Vec<FieldProblem>>> {
        let mut fields = Fields::default();
        self.check(&mut fields);
        let batch = self.batch.as_deref().map(str::parse::<BatchId>).transpose();
        fields.check(batch.is_ok(), "batch", "wrong_format", || BAD_BATCH.to_owned());
        let metadata = self.metadata.as_deref().map(member).transpose();
        fields.check(metadata.is_ok(), "metadata", "wrong_format", || BAD_MEMBER.to_owned());
        let connection = filter::connection(app, tenant, self.connection.as_deref(), &mut fields).await?;
        if !fields.is_empty() {
            return Ok(Err(fields.into_problems()));
        }
        Ok(Ok(MessageFilter {
            state: self.state,
            channel: self.channel,
            reference: self.reference,
            recipients: self.recipient.as_deref().map(spellings).unwrap_or_default(),
            connection,
            provider: self.provider,
            code: self.code,
            since: self.since,
            until: self.until,
            batch: batch.ok().flatten(),
            metadata: metadata.ok().flatten(),
            ids: Vec::new(),
        }))
    }

    fn check(&self, fields: &mut Fields) {
        if let Some(Err(error)) = self.channel.as_ref().map(|text| text.parse::<Channel>()) {
            fields.check(false, "channel", "wrong_format", || error.to_string());
        }
        filter::check_times(fields, [("since", self.since), ("until", self.until)]);
        let texts = [
            ("recipient", &self.recipient),
            ("connection", &self.connection),
            ("provider", &self.provider),
            ("code", &self.code),
            ("reference", &self.reference),
            ("metadata", &self.metadata),
        ];
        filter::check_texts(fields, texts);
    }
}

impl From<MessageFilter> for Filter {
    fn from(filter: MessageFilter) -> Self {
        Self {
            state: filter.state,
            channel: filter.channel,
            recipient: filter.recipients.into_iter().next(),
            connection: filter.connection.map(|id| id.to_string()),
            provider: filter.provider,
            code: filter.code,
            since: filter.since,
            until: filter.until,
            batch: filter.batch.map(|id| id.to_string()),
            reference: filter.reference,
            metadata: filter.metadata.map(|(name, value)| format!("{name}:{value}")),
        }
    }
}

/// A member's name goes to the first colon: a value may have colons of its own.
fn member(text: &str) -> Result<(String, String), ()> {
    let (name, value) = text.split_once(':').ok_or(())?;
    if name.is_empty() {
        return Err(());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::member;

    #[test]
    fn a_members_value_may_have_colons() {
        assert_eq!(member("at:09:30"), Ok(("at".to_owned(), "09:30".to_owned())));
        assert_eq!(member("empty:"), Ok(("empty".to_owned(), String::new())));
        assert!(member(":x").is_err() && member("x").is_err());
    }
}
