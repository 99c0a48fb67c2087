//! A file that is no component is refused, whatever its content; a component's content is arbitrary.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use angarium_runtime::{CallLimits, Runtime, RuntimeSettings, fuzzing::inspect};
use libfuzzer_sys::fuzz_target;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let limits = CallLimits { live_instances: 4, compilation: Duration::from_secs(15), ..CallLimits::default() };
    Runtime::new(RuntimeSettings { cache: None, limits }).expect("the sandbox can be made")
});

fuzz_target!(|bytes: &[u8]| {
    // Compiling takes long: only for what gets so far.
    if inspect(bytes) {
        let _ = RUNTIME.admit(bytes);
    }
});
