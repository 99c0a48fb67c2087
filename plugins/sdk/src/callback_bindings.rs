//! The types and glue of the contract's `callbacks`, generated from `wit/v1`. A component has them only if `export!`
//! says so.

#![allow(missing_docs, reason = "generated")]

wit_bindgen::generate!({
    path: "../../wit/v1",
    world: "callback-reader",
    pub_export_macro: true,
    export_macro_name: "__export_callbacks",
    default_bindings_module: "angarium_provider::callback_bindings",
    additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    additional_type_attributes: {
        "angarium:provider/callbacks@1.0.0/context": [#[derive(Default)] #[serde(default, deny_unknown_fields)]],
        "angarium:provider/callbacks@1.0.0/request": [#[derive(Default)] #[serde(default, deny_unknown_fields)]],
        "angarium:provider/callbacks@1.0.0/hash": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/callbacks@1.0.0/public-key-algorithm": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/callbacks@1.0.0/key-format": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/callbacks@1.0.0/encoding": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/callbacks@1.0.0/segment": [#[serde(rename_all = "snake_case")]],
        "angarium:provider/callbacks@1.0.0/check": [#[serde(rename_all = "snake_case")]],
    },
    additional_member_attributes: {
        "angarium:provider/callbacks@1.0.0/request.body": [#[serde(with = "crate::vectors::bytes_as_text")]],
    },
});

pub use exports::angarium::provider::callbacks;
