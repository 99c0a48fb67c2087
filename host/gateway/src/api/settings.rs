//! `/v1/settings`: what holds for all of a tenant's deliveries, whichever route they take.

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{RoutesRead, RoutesWrite, Tenant},
    draft::Draft,
    json::Json,
    problem::{Problem, ProblemBody},
};
use crate::app::settings::{self, StoredSettings};
use angarium_domain::overrides::Overrides;

/// All settings: members that are left out return to their defaults.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSettings, example = json!({
    "version": 1, "overrides": {"21610": "permanent", "sms-twilio": {"30007": "transient"}}
}))]
pub struct NewSettings {
    /// The version that this changes; refused if there is a later one. Left out, any version is replaced.
    #[serde(default)]
    #[schema(minimum = 0)]
    version: Option<i64>,
    /// The meaning of providers' codes, in place of the providers' own: by code, or by a provider's name and then its
    /// codes. A route's own takes precedence.
    #[serde(default)]
    overrides: Overrides,
}

/// A tenant's settings.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Settings)]
pub struct SettingsAnswer {
    /// Grows with each change; 0 before the first.
    version: i64,
    overrides: Overrides,
    #[schema(value_type = Option<String>, format = DateTime)]
    updated_at: Option<Timestamp>,
}

/// Show the settings.
#[utoipa::path(get, path = "/v1/settings", tag = "settings", operation_id = "getSettings",
    responses((status = 200, description = "The settings.", body = SettingsAnswer)))]
pub async fn get(tenant: Tenant<RoutesRead>, State(app): State<App>) -> Result<Json<SettingsAnswer>, Problem> {
    Ok(Json(settings::get(&app, tenant.id).await?.into()))
}

/// Replace the settings.
#[utoipa::path(put, path = "/v1/settings", tag = "settings", operation_id = "putSettings",
    request_body = NewSettings,
    responses(
        (status = 200, description = "The present settings.", body = SettingsAnswer),
        (status = 409, description = "There is a later version.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn put(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    Draft(new, fields): Draft<NewSettings>,
) -> Result<Json<SettingsAnswer>, Problem> {
    Ok(Json(settings::put(&app, &tenant.principal(), new.overrides, new.version, fields).await?.into()))
}

impl From<StoredSettings> for SettingsAnswer {
    fn from(stored: StoredSettings) -> Self {
        Self { version: stored.version, overrides: stored.settings.overrides, updated_at: stored.updated_at }
    }
}
