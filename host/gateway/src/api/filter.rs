//! What filters of lists share: times, texts and the names of connections.

use jiff::Timestamp;

use super::{fields::Fields, request::short_text};
use crate::app::{self, App, names};
use angarium_domain::ids::{ConnectionId, TenantId};

/// Reads a time of a query.
///
/// # Errors
/// The requirement that it does not meet.
pub fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "must be a time in the years 1970 to 9998, such as `2027-01-31T09:00:00Z`".to_owned())
}

/// Checks that the database can tell these times.
pub fn check_times(fields: &mut Fields, times: [(&str, Option<Timestamp>); 2]) {
    for (name, time) in times {
        let tellable = time.is_none_or(|time| (0..=253_370_764_800).contains(&time.as_second()));
        fields.check(tellable, name, "out_of_range", || "must lie in the years 1970 to 9998".to_owned());
    }
}

/// Checks that these texts can be looked for.
pub fn check_texts<const N: usize>(fields: &mut Fields, texts: [(&str, &Option<String>); N]) {
    for (name, text) in texts {
        if let Some(Err(detail)) = text.as_deref().map(short_text) {
            fields.check(false, name, "wrong_format", || detail);
        }
    }
}

/// Returns the id of the connection that a filter names, or records that there is none.
pub async fn connection(
    app: &App,
    tenant: TenantId,
    name: Option<&str>,
    fields: &mut Fields,
) -> app::Result<Option<ConnectionId>> {
    // An impossible name is not looked up: the database takes no NUL.
    let Some(name) = name.filter(|name| short_text(name).is_ok()) else { return Ok(None) };
    let found = names::connection_id(app, tenant, name).await?;
    fields.check(found.is_some(), "connection", "unknown_connection", || {
        "does not exist: give the id of a connection, or the uid of one of yours".to_owned()
    });
    Ok(found)
}
