//! What the operations of routes, rules and scripts have in common: their names in paths, and the comparison of two
//! versions.

use utoipa::IntoParams;

use super::{App, json::Json, problem::Problem, request::Query};
use crate::app::documents::{self, VersionComparison};
use angarium_domain::{document::DocumentKind, ids::TenantId};

/// The route of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "`UrlPath` reads it; this lists it in the document")]
pub struct RouteInPath {
    /// `route_…` or its uid
    route: String,
}

/// The rule of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "`UrlPath` reads it; this lists it in the document")]
pub struct RuleInPath {
    /// `rule_…` or its uid
    rule: String,
}

/// The script of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "`UrlPath` reads it; this lists it in the document")]
pub struct ScriptInPath {
    /// Its name.
    script: String,
}

/// The version of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "`UrlPath` reads it; this lists it in the document")]
pub struct VersionInPath {
    /// The version to look at.
    #[param(minimum = 1)]
    version: i32,
}

/// The parameters of a comparison.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`compared` reads them; this lists them in the document")]
pub struct ComparisonParams {
    /// Another version; left out, the active one.
    #[param(minimum = 1)]
    against: Option<i32>,
}

/// Compares a version of a document with the one that the query names, or with the active one.
pub async fn compared(
    app: &App,
    tenant: TenantId,
    kind: DocumentKind,
    (name, version): (String, i32),
    mut query: Query,
) -> Result<Json<VersionComparison>, Problem> {
    let against = query.take("against", |text| match text.parse() {
        Ok(version) if version > 0 => Ok(version),
        _ => Err("must be the number of a version, 1 or more".to_owned()),
    });
    query.finish()?;
    Ok(Json(documents::compare(app, tenant, kind, &name, version, against).await?))
}
