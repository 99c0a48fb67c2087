//! The access of the fuzz targets to the border with components. It is not in a build for use.

use super::{
    CallLimits,
    answer::{self, Outcomes},
    descriptor, inspection,
    v1::RawDescriptor,
};
use angarium_domain::provider::{Deduplication, Descriptor, SecretSpec, Step};

/// Whether a file passes all that is checked before it is compiled.
pub fn inspect(bytes: &[u8]) -> bool {
    inspection::inspect(bytes, &CallLimits::default()).is_ok()
}

/// Whether a step passes; its texts are made harmless.
pub fn check_step(step: &mut Step) -> bool {
    answer::step(step, Outcomes::Exactly(1)).is_ok()
}

/// Returns a component's descriptor, if it is valid.
pub fn check_descriptor(texts: [String; 8]) -> Option<Descriptor> {
    let [name, version, channel, config_schema, secret, host, cost_model, ext] = texts;
    let raw = RawDescriptor {
        name,
        version,
        summary: "Is fuzzed.".to_owned(),
        channels: vec![channel],
        config_schema,
        secrets: vec![SecretSpec { name: secret, required: false, purpose: "Proves who asks.".to_owned() }],
        hosts: vec![host],
        deduplication: Deduplication::None,
        cost_model,
        max_batch: 1,
        ext,
    };
    descriptor::check(raw).ok().map(|described| described.descriptor)
}
