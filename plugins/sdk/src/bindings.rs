//! The contract's types and glue, generated from `wit/v1`; nothing is written here by hand.
//!
//! The serde attributes serve the golden vectors only: names as in the WIT, in snake case, and
//! bytes as text.

#![allow(missing_docs, reason = "generated")]

wit_bindgen::generate!({
    path: "../../wit/v1",
    world: "provider",
    pub_export_macro: true,
    export_macro_name: "__export_component",
    default_bindings_module: "angarium_provider::bindings",
    additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    additional_type_attributes: {
        "angarium:provider/plugin@1.0.0/context": [#[derive(Default)] #[serde(default, deny_unknown_fields)]],
        "angarium:provider/plugin@1.0.0/delivery": [#[derive(Default)] #[serde(default, deny_unknown_fields)]],
        "angarium:provider/plugin@1.0.0/http-response": [#[serde(deny_unknown_fields)]],
        "angarium:provider/plugin@1.0.0/smtp-reply": [#[serde(deny_unknown_fields)]],
        "angarium:provider/plugin@1.0.0/deduplication": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/encoding": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/segment": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/oauth2-grant": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/signature-algorithm": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/key-format": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/auth": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/http-method": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/smtp-tls": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/smtp-timeouts": [#[derive(Default)] #[serde(default, deny_unknown_fields)]],
        "angarium:provider/plugin@1.0.0/transmission": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/reply": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/disposition": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/plugin@1.0.0/step": [#[serde(rename_all = "snake_case")]],
    },
    additional_member_attributes: {
        "angarium:provider/plugin@1.0.0/http-response.headers": [#[serde(default)]],
        "angarium:provider/plugin@1.0.0/http-response.body": [#[serde(default, with = "crate::vectors::bytes_as_text")]],
        "angarium:provider/plugin@1.0.0/smtp-reply.text": [#[serde(default)]],
        "angarium:provider/plugin@1.0.0/send.state": [#[serde(with = "crate::vectors::bytes_as_text")]],
        "angarium:provider/plugin@1.0.0/pause.state": [#[serde(with = "crate::vectors::bytes_as_text")]],
    },
});

pub use exports::angarium::provider::plugin;
