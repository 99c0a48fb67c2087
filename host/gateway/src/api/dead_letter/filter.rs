//! The filter of dead letters: from the query of a list, or from the body of an action on all that match.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::{
    fields::Fields,
    filter,
    problem::FieldProblem,
    request::{Query, short_text},
};
use crate::app::{self, App, names};
use angarium_domain::{
    dead_letter::DeadLetterFilter,
    delivery::DeliveryState,
    ids::{RouteId, TenantId},
    message::Channel,
};

/// A filter of dead letters: all of its members must hold.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeadLetterFilter, example = json!({"states": ["failed"], "channel": "sms", "since": "2027-01-31T09:00:00Z"}))]
pub struct LetterFilter {
    /// In one of these states. Left out: all, but a replay leaves `unknown` alone, since it may have
    /// been sent.
    #[serde(default)]
    #[schema(min_items = 1)]
    states: Option<Vec<DeadStateName>>,
    /// The channel of the last attempt; the next four members are also of the last attempt.
    #[serde(default)]
    #[schema(pattern = "^[a-z][a-z0-9_]{0,31}$", example = "sms")]
    channel: Option<String>,
    /// A connection's id or uid.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    connection: Option<String>,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    provider: Option<String>,
    /// A route's id or uid.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    route: Option<String>,
    /// The provider's, or the gateway's word for it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 1024)]
    code: Option<String>,
    /// Those that ended at this time or later.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only those that ended before this time.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// The message's recipient.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 1024)]
    recipient: Option<String>,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 1024)]
    reference: Option<String>,
}

/// The state of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadStateName {
    Failed,
    Bounced,
    Expired,
    Unroutable,
    Unknown,
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`LetterFilter::of` reads them; this lists them in the document")]
pub struct LetterFilterParams {
    /// Only in these states, with commas between: `failed`, `bounced`, `expired`, `unroutable`, `unknown`.
    state: Option<String>,
    /// Only this channel, of the last attempt.
    channel: Option<String>,
    /// Only this connection, of the last attempt: its id or uid.
    connection: Option<String>,
    /// Only this provider, of the last attempt.
    provider: Option<String>,
    /// Only this route, of the last attempt: its id or uid.
    route: Option<String>,
    /// Only this code, of the last attempt: the provider's, or the gateway's word for it.
    code: Option<String>,
    /// Only those that ended at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Only those that ended before.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
    /// Only those for this recipient.
    recipient: Option<String>,
    /// Only dead letters of messages with this reference.
    reference: Option<String>,
}

impl LetterFilter {
    pub const fn names_recipient(&self) -> bool {
        self.recipient.is_some()
    }

    /// Takes the filter from a query.
    pub fn of(query: &mut Query) -> Self {
        Self {
            states: query.take("state", states),
            channel: query.take("channel", short_text),
            connection: query.take("connection", short_text),
            provider: query.take("provider", short_text),
            route: query.take("route", short_text),
            code: query.take("code", short_text),
            since: query.take("since", filter::time),
            until: query.take("until", filter::time),
            recipient: query.take("recipient", short_text),
            reference: query.take("reference", short_text),
        }
    }

    /// Returns the filter, with `states` as its default states, or each invalid member by its name.
    pub async fn into_domain(
        self,
        app: &App,
        tenant: TenantId,
        states: Vec<DeliveryState>,
    ) -> app::Result<Result<DeadLetterFilter, Vec<FieldProblem>>> {
        let mut fields = Fields::default();
        self.check(&mut fields);
        // An impossible name is not looked up: the database takes no NUL.
        let name = |text: &Option<String>| text.clone().filter(|text| short_text(text).is_ok());
        let connection = filter::connection(app, tenant, self.connection.as_deref(), &mut fields).await?;
        let route = match name(&self.route) {
            Some(name) => route(app, tenant, &name, &mut fields).await?,
            None => None,
        };
        if !fields.is_empty() {
            return Ok(Err(fields.into_problems()));
        }
        Ok(Ok(DeadLetterFilter {
            states: self.states.map_or(states, |named| named.into_iter().map(DeliveryState::from).collect()),
            channel: self.channel,
            connection,
            provider: self.provider,
            route,
            code: self.code,
            since: self.since,
            until: self.until,
            recipient: self.recipient,
            reference: self.reference,
        }))
    }

    fn check(&self, fields: &mut Fields) {
        let none = self.states.as_ref().is_some_and(Vec::is_empty);
        fields.check(!none, "states", "empty", || "must list at least one state, or be left out".to_owned());
        if let Some(Err(error)) = self.channel.as_ref().map(|text| text.parse::<Channel>()) {
            fields.check(false, "channel", "wrong_format", || error.to_string());
        }
        filter::check_times(fields, [("since", self.since), ("until", self.until)]);
        let texts = [
            ("connection", &self.connection),
            ("provider", &self.provider),
            ("route", &self.route),
            ("code", &self.code),
            ("recipient", &self.recipient),
            ("reference", &self.reference),
        ];
        filter::check_texts(fields, texts);
    }
}

fn states(text: &str) -> Result<Vec<DeadStateName>, String> {
    let words: Option<Vec<_>> = text.split(',').map(state).collect();
    words.filter(|words| words.len() <= DeliveryState::DEAD.len()).ok_or_else(|| {
        let states = DeliveryState::DEAD.map(DeliveryState::as_str).join("`, `");
        format!("must list some of `{states}`, with commas between")
    })
}

fn state(word: &str) -> Option<DeadStateName> {
    use DeadStateName::{Bounced, Expired, Failed, Unknown, Unroutable};
    [Failed, Bounced, Expired, Unroutable, Unknown].into_iter().find(|it| DeliveryState::from(*it).as_str() == word)
}

async fn route(app: &App, tenant: TenantId, name: &str, fields: &mut Fields) -> app::Result<Option<RouteId>> {
    let found = names::route_id(app, tenant, name).await?;
    fields.check(found.is_some(), "route", "unknown_route", || {
        "does not exist: give the id of a route, or the uid of one of yours".to_owned()
    });
    Ok(found)
}

impl From<DeadStateName> for DeliveryState {
    fn from(name: DeadStateName) -> Self {
        match name {
            DeadStateName::Failed => Self::Failed,
            DeadStateName::Bounced => Self::Bounced,
            DeadStateName::Expired => Self::Expired,
            DeadStateName::Unroutable => Self::Unroutable,
            DeadStateName::Unknown => Self::Unknown,
        }
    }
}

impl From<DeadLetterFilter> for LetterFilter {
    fn from(filter: DeadLetterFilter) -> Self {
        Self {
            states: Some(filter.states.iter().filter_map(|it| state(it.as_str())).collect()),
            channel: filter.channel,
            connection: filter.connection.map(|id| id.to_string()),
            provider: filter.provider,
            route: filter.route.map(|id| id.to_string()),
            code: filter.code,
            since: filter.since,
            until: filter.until,
            recipient: filter.recipient,
            reference: filter.reference,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_dead_letter_has_its_name() {
        for dead in DeliveryState::DEAD {
            assert_eq!(state(dead.as_str()).map(DeliveryState::from), Some(dead));
        }
        assert_eq!(states("failed,unknown"), Ok(vec![DeadStateName::Failed, DeadStateName::Unknown]));
        for bad in ["", "sent", "failed,", "failed,failed,failed,failed,failed,failed"] {
            assert!(states(bad).is_err(), "{bad}");
        }
    }
}
