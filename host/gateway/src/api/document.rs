//! The paths, and the OpenAPI document of them. Answers that every operation can give are added here, once.

use std::{collections::BTreeMap, mem};

use utoipa::{
    OpenApi, PartialSchema, ToSchema,
    openapi::{
        Content, Ref, RefOr, Response, ResponseBuilder, Schema,
        path::{Operation, ParameterIn, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use angarium_domain::callback::CALLBACK_PATH;

use super::{
    HttpState, audit, backtest, callback, connection, dead_letter, event, experiment, guards, health, job,
    json::close_tagged, message, operation, problem::ProblemBody, provider, provider::GrantsChoice, resolution, route,
    rule, script, settings, statistics,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Angarium",
        description = "A self-hosted delivery gateway. Every error is a problem (RFC 9457) that names every bad field.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = ".")),
    tags(
        (name = "messages", description = "Sending, and the state of each message."),
        (name = "dead-letters", description = "Deliveries that ended without success, and wait for a person."),
        (name = "events", description = "Events, and their stream."),
        (name = "connections", description = "A tenant's accounts at providers."),
        (name = "routes", description = "The connections that serve a channel."),
        (name = "rules", description = "Conditions and scripts for particular messages."),
        (name = "settings", description = "Settings for all of a tenant's deliveries."),
        (name = "providers", description = "The components that describe requests to delivery services."),
        (name = "statistics", description = "Counts, rates, latencies, cost and health."),
        (name = "audit", description = "The audit."),
        (name = "callbacks", description = "Later reports of providers' services."),
        (name = "operations", description = "For operators of the gateway."),
    ),
)]
struct Head;

/// Every documented path with its handler.
pub fn routes() -> OpenApiRouter<HttpState> {
    let mut router = OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(message::list, message::create))
        .routes(routes!(message::create_batch))
        .routes(routes!(message::get, message::reschedule))
        .routes(routes!(message::attempts))
        .routes(routes!(message::content::content))
        .routes(routes!(message::content::attachment))
        .routes(routes!(message::events))
        .routes(routes!(job::list, job::start))
        .routes(routes!(job::get))
        .routes(routes!(job::cancel))
        .routes(routes!(message::decision))
        .routes(routes!(message::cancel))
        .routes(routes!(message::retry))
        .routes(routes!(message::purge))
        .routes(routes!(resolution::resolve))
        .routes(routes!(dead_letter::list))
        .routes(routes!(dead_letter::get))
        .routes(routes!(dead_letter::replay))
        .routes(routes!(dead_letter::discard))
        .routes(routes!(dead_letter::discard_all))
        .routes(routes!(dead_letter::replays::list, dead_letter::replays::start))
        .routes(routes!(dead_letter::replays::get))
        .routes(routes!(dead_letter::replays::cancel))
        .routes(routes!(audit::list))
        .routes(routes!(audit::list_of_operators))
        .routes(routes!(event::list))
        .routes(routes!(event::follow))
        .routes(routes!(connection::list, connection::create))
        .routes(routes!(connection::get, connection::update, connection::delete))
        .routes(routes!(connection::rotate))
        .routes(routes!(guards::set_breaker))
        .routes(routes!(route::list, route::create))
        .routes(routes!(route::get, route::delete))
        .routes(routes!(route::versions, route::create_version))
        .routes(routes!(route::compare))
        .routes(routes!(route::activate))
        .routes(routes!(route::rollback))
        .routes(routes!(rule::list, rule::create))
        .routes(routes!(rule::evaluate))
        .routes(routes!(backtest::backtest))
        .routes(routes!(rule::get, rule::put, rule::patch, rule::delete))
        .routes(routes!(rule::versions, rule::create_version))
        .routes(routes!(rule::compare))
        .routes(routes!(rule::activate))
        .routes(routes!(rule::rollback))
        .routes(routes!(experiment::begin_of_rule, experiment::get_of_rule, experiment::end_of_rule))
        .routes(routes!(experiment::differences_of_rule))
        .routes(routes!(script::list))
        .routes(routes!(script::get, script::retire))
        .routes(routes!(script::reset))
        .routes(routes!(script::versions, script::create_version))
        .routes(routes!(script::compare))
        .routes(routes!(script::activate))
        .routes(routes!(script::rollback))
        .routes(routes!(experiment::begin_of_script, experiment::get_of_script, experiment::end_of_script))
        .routes(routes!(experiment::differences_of_script))
        .routes(routes!(settings::get, settings::put))
        .routes(routes!(provider::list, provider::install))
        .routes(routes!(provider::get, provider::uninstall))
        .routes(routes!(provider::uninstall_version))
        .routes(routes!(provider::activate))
        .routes(routes!(provider::rollback))
        .routes(routes!(provider::grant))
        .routes(routes!(statistics::show))
        .routes(routes!(statistics::show_all))
        .routes(routes!(health::providers))
        .routes(routes!(callback::get, callback::post))
        .merge(operations());
    complete(router.get_openapi_mut());
    router
}

/// The paths that every node serves, in every role.
pub fn operations() -> OpenApiRouter<HttpState> {
    OpenApiRouter::new()
        .routes(routes!(operation::live))
        .routes(routes!(operation::ready))
        .routes(routes!(operation::metrics))
}

/// Adds the key, the problem's schema, and the problems that any operation of a kind can answer.
fn complete(document: &mut utoipa::openapi::OpenApi) {
    let components = document.components.get_or_insert_default();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("ak_…")
        .description(Some("A key of `angarium key create`."))
        .build();
    components.security_schemes.insert("key".to_owned(), RefOr::T(SecurityScheme::Http(key)));
    let mut schemas = Vec::new();
    ProblemBody::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    // Only a parameter refers to it, and the schemas of parameters are not collected.
    components.schemas.insert(GrantsChoice::name().into_owned(), GrantsChoice::schema());
    components.schemas.values_mut().for_each(close_tagged);
    name_alternatives(&mut components.schemas);
    for (path, item) in &mut document.paths.paths {
        for operation in operations_of(item) {
            add_problems(operation, path.starts_with("/v1/"), path.starts_with(CALLBACK_PATH));
        }
    }
}

/// Gives each alternative of a union with tags a schema of its own. Generators of clients find one that holds the union
/// again, as a retry policy does, by its name alone.
fn name_alternatives(schemas: &mut BTreeMap<String, RefOr<Schema>>) {
    let mut named = Vec::new();
    for (union, schema) in schemas.iter_mut() {
        let RefOr::T(Schema::OneOf(alternatives)) = schema else { continue };
        for alternative in &mut alternatives.items {
            let Some(tag) = tag_of(alternative) else { continue };
            let name = format!("{union}{}", in_camel_case(&tag));
            let reference = RefOr::Ref(Ref::from_schema_name(&name));
            named.push((name, mem::replace(alternative, reference)));
        }
    }
    schemas.extend(named);
}

/// The word that `type` has in an object.
fn tag_of(schema: &RefOr<Schema>) -> Option<String> {
    let RefOr::T(Schema::Object(object)) = schema else { return None };
    let RefOr::T(Schema::Object(tag)) = object.properties.get("type")? else { return None };
    tag.enum_values.as_ref()?.first()?.as_str().map(str::to_owned)
}

/// `round_robin` as `RoundRobin`.
fn in_camel_case(word: &str) -> String {
    word.split('_')
        .filter_map(|part| Some(format!("{}{}", part.get(..1)?.to_ascii_uppercase(), part.get(1..)?)))
        .collect()
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// A callback comes without a key, and in any form of its service.
fn add_problems(operation: &mut Operation, is_resource: bool, is_callback: bool) {
    let with_key = is_resource && !is_callback;
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let stands_in = |place: &ParameterIn| {
        parameters.iter().any(|it| matches!(it, RefOr::T(parameter) if parameter.parameter_in == *place))
    };
    let (by_name, by_query) = (stands_in(&ParameterIn::Path), stands_in(&ParameterIn::Query));
    let body = operation.request_body.is_some();
    let problems = [
        (body || by_query || !by_name, "400", "The request can't be read, or a parameter is wrong."),
        (with_key, "401", "The API key is missing or not valid."),
        (with_key, "403", "The API key lacks the scope."),
        (by_name, "404", "It does not exist, or belongs to another tenant."),
        (body, "408", "The request came too slowly."),
        (body, "413", "The body is too long."),
        (body && !is_callback, "415", "The body is of another kind."),
        (body && !is_callback, "422", "Fields of the body are wrong; `errors` names each."),
        (true, "500", "The gateway failed."),
        (is_resource, "503", "The gateway can't do this now; `Retry-After` says when to try again."),
    ];
    for (_, status, description) in problems.into_iter().filter(|(applies, ..)| *applies) {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(description)));
    }
    if with_key {
        operation.security = Some(vec![SecurityRequirement::new("key", Vec::<String>::new())]);
    }
}

fn problem(description: &str) -> Response {
    let schema = Ref::from_schema_name(ProblemBody::name());
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", Content::new(Some(schema)))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_says_what_it_can_answer() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let create = &document["paths"]["/v1/messages"]["post"];
        for status in ["200", "202", "400", "401", "403", "413", "415", "422", "500", "503"] {
            assert!(create["responses"][status].is_object(), "{status}");
        }
        assert_eq!(create["security"][0]["key"], serde_json::json!([]));
        assert!(document["paths"]["/livez"]["get"]["responses"]["401"].is_null());
        let callback = &document["paths"]["/v1/callbacks/{token}"]["post"];
        assert_eq!(callback["security"], serde_json::json!([{}]));
        for status in ["2XX", "400", "401", "404", "413", "502", "503"] {
            assert!(callback["responses"][status].is_object(), "{status}");
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_exists() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
    }

    /// Every JSON body with its schema.
    fn bodies(document: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
        let mut bodies = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                if !schema.is_null() {
                    bodies.push((format!("{method} {path}"), schema.clone()));
                }
            }
        }
        bodies
    }

    #[test]
    fn every_body_has_an_example_that_is_one() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        let bodies = bodies(&document);
        assert!(bodies.len() > 20, "{}", bodies.len());
        for (operation, schema) in bodies {
            let named = document.pointer(schema["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
            assert!(!named["example"].is_null(), "{operation} has no example");
            let mut whole = schema.clone();
            whole["components"] = document["components"].clone();
            let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&whole).unwrap();
            let problems: Vec<_> = validator.iter_errors(&named["example"]).map(|it| it.to_string()).collect();
            assert_eq!(problems, Vec::<String>::new(), "{operation}");
        }
    }

    #[test]
    fn what_holds_itself_has_a_name() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        let custom = &document["components"]["schemas"]["RetryPolicyCustom"]["properties"]["otherwise"];
        assert_eq!(custom["$ref"], "#/components/schemas/RetryPolicy");
        let policy = document["components"]["schemas"]["RetryPolicy"]["oneOf"].as_array().unwrap();
        assert!(policy.iter().all(|it| it["$ref"].is_string()), "{policy:?}");
    }

    #[test]
    fn the_documents_schemas_are_valid() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(jsonschema::draft202012::meta::is_valid(schema), "{name}");
        }
    }

    /// A path with a parameter, and another that has a word in its place.
    #[test]
    fn a_uid_is_no_word_that_stands_in_its_place() {
        let document = serde_json::to_value(super::super::openapi()).unwrap();
        let paths: Vec<Vec<&str>> =
            document["paths"].as_object().unwrap().keys().map(|path| path.split('/').collect()).collect();
        let mut words = std::collections::BTreeSet::new();
        for path in &paths {
            for (place, _) in path.iter().enumerate().filter(|(_, part)| part.starts_with('{')) {
                let beside = paths.iter().filter(|other| other.len() > place && other[..place] == path[..place]);
                words.extend(beside.map(|other| other[place]).filter(|word| !word.starts_with('{')));
            }
        }
        assert!(words.contains("evaluate"), "{words:?}");
        assert!(words.iter().all(|word| crate::app::fields::IN_PATHS.contains(word)), "{words:?}");
    }
}
