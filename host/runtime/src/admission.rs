//! The way from a file to a component that may be called. Each check is cheaper, and trusts more, than the next; the
//! first that fails names the fault.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    thread,
};

use sha2::{Digest, Sha256};
use wasmtime::component::Component as Compiled;

use super::{
    artifacts::ArtifactCache,
    call::{self, GuestFault},
    component::Component,
    descriptor::{self, DescriptorProblem},
    inspection,
    sandbox::Sandbox,
    v1::{self, Linked},
};

/// Cranelift recurses over the compiled code.
const COMPILER_STACK: usize = 16 << 20;

/// Why a file is not a component that can serve. In the order of the checks.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Only if a digest was recorded.
    #[error("the file has changed: its SHA-256 is {found}, {recorded} was recorded")]
    Changed { recorded: String, found: String },
    #[error("the component has {size} bytes, {most} are allowed")]
    TooLarge { size: usize, most: usize },
    /// Native code from outside is never run.
    #[error("this is a precompiled artifact; upload the component (.wasm) that it was made of")]
    Precompiled,
    #[error("this is not a WebAssembly component: {0}")]
    NotAComponent(&'static str),
    /// Also what uses a WebAssembly proposal that is switched off.
    #[error("the component is not valid: {0}")]
    Malformed(String),
    #[error("the component is too complex to compile: it has {0}")]
    TooComplex(String),
    /// A provider needs nothing but the log.
    #[error("the component imports {}; only `{}` may be imported", list(.0), v1::LOG)]
    Imports(Vec<String>),
    #[error("the component doesn't export `{}`; it exports {}", v1::PLUGIN, list(found))]
    MissingExport { found: Vec<String> },
    #[error("the component doesn't compile: {0}")]
    Compilation(String),
    #[error("the component wasn't compiled within {seconds} s")]
    CompilationTimeout { seconds: u64 },
    /// The names are right and the types are not: it was built against another contract.
    #[error("the component doesn't fit the contract: {0}")]
    Contract(String),
    #[error("the component can't describe itself: {0}")]
    Describe(#[source] GuestFault),
    /// Every problem at once.
    #[error("the component's descriptor is not valid: {}", problems(.0))]
    Descriptor(Vec<DescriptorProblem>),
    #[error("the host can't compile: {0}")]
    Host(#[source] io::Error),
}

fn list(names: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Writing to a string can't fail.
        let _ = write!(text, "{comma}`{name}`");
    }
    if text.is_empty() { "nothing".to_owned() } else { text }
}

fn problems(problems: &[DescriptorProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns a component's digest: SHA-256 in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Admits a component; blocks while it compiles.
pub(super) fn admit(
    sandbox: &Arc<Sandbox>,
    artifacts: Option<&ArtifactCache>,
    compiler: &ComponentCompiler,
    bytes: &[u8],
) -> Result<Arc<Component>, AdmissionError> {
    let border = inspection::inspect(bytes, sandbox.limits())?;
    let digest = digest(bytes);
    let compiled = compiled(sandbox, artifacts, compiler, bytes, &digest)?;
    let linked = Linked::new(sandbox, &compiled).map_err(|error| AdmissionError::Contract(format!("{error:#}")))?;
    let raw = describe(sandbox, &linked, &digest)?;
    let described = descriptor::check(raw).map_err(AdmissionError::Descriptor)?;
    Ok(Arc::new(Component::new(Arc::clone(sandbox), linked, described, digest, bytes.len(), border.imports)))
}

fn describe(sandbox: &Sandbox, linked: &Linked, digest: &str) -> Result<v1::RawDescriptor, AdmissionError> {
    let unnamed: Arc<str> = Arc::from(digest);
    let (described, _usage) = call::run(sandbox, &unnamed, 0, &Arc::default(), |store| linked.describe(store));
    described.map_err(AdmissionError::Describe)
}

/// The component's machine code: from the cache, or compiled and kept there.
fn compiled(
    sandbox: &Arc<Sandbox>,
    artifacts: Option<&ArtifactCache>,
    compiler: &ComponentCompiler,
    bytes: &[u8],
    digest: &str,
) -> Result<Compiled, AdmissionError> {
    if let Some(kept) = artifacts.and_then(|artifacts| artifacts.load(sandbox.engine(), digest)) {
        return Ok(kept);
    }
    let compiled = compiler.compile(sandbox, bytes)?;
    if let Some(artifacts) = artifacts {
        artifacts.keep(digest, &compiled);
    }
    Ok(compiled)
}

/// One compilation at a time, on a thread of its own.
///
/// A compilation cannot be interrupted, so the limits apply to its input: the size of the file, the size of each
/// function and their number, all checked before. A compilation that still takes too long is abandoned: the caller gets
/// an answer, one core stays busy until the compiler returns, and no second one joins it meanwhile.
#[derive(Default)]
pub(super) struct ComponentCompiler {
    turn: Arc<Mutex<()>>,
}

impl ComponentCompiler {
    fn compile(&self, sandbox: &Arc<Sandbox>, bytes: &[u8]) -> Result<Compiled, AdmissionError> {
        let (done, finished) = mpsc::sync_channel(1);
        let awaited = Arc::new(());
        let job = Job {
            turn: Arc::clone(&self.turn),
            awaited: Arc::downgrade(&awaited),
            sandbox: Arc::clone(sandbox),
            bytes: bytes.to_vec(),
        };
        let run = move || job.run().map(|compiled| done.send(compiled));
        let thread = thread::Builder::new().name("compiler".to_owned()).stack_size(COMPILER_STACK);
        thread.spawn(run).map_err(AdmissionError::Host)?;
        let limit = sandbox.limits().compilation;
        match finished.recv_timeout(limit) {
            Ok(Ok(compiled)) => Ok(compiled),
            Ok(Err(error)) => Err(AdmissionError::Compilation(format!("{error:#}"))),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(AdmissionError::CompilationTimeout { seconds: limit.as_secs() })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(AdmissionError::Compilation("the compiler panicked".to_owned()))
            }
        }
    }
}

struct Job {
    turn: Arc<Mutex<()>>,
    awaited: Weak<()>,
    sandbox: Arc<Sandbox>,
    bytes: Vec<u8>,
}

impl Job {
    /// Returns nothing when the caller no longer waits.
    fn run(self) -> Option<wasmtime::Result<Compiled>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.awaited.upgrade()?;
        Some(Compiled::from_binary(self.sandbox.engine(), &self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CallLimits, Runtime, RuntimeSettings};
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        refusal_under(CallLimits::default(), bytes)
    }

    fn refusal_under(limits: CallLimits, bytes: &[u8]) -> String {
        let limits = CallLimits { live_instances: 1, ..limits };
        let runtime = Runtime::new(RuntimeSettings { limits, ..RuntimeSettings::default() }).unwrap();
        runtime.admit(bytes).unwrap_err().to_string()
    }

    fn wat(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_foreign_import_is_named() {
        let component = wat(r#"(component
            (import "angarium:provider/log@1.0.0" (instance))
            (import "wasi:sockets/tcp@0.2.0" (instance))
            (import "run" (func)))"#);
        assert_eq!(
            refusal(&component),
            "the component imports `wasi:sockets/tcp@0.2.0`, `run`; only `angarium:provider/log@1.0.0` may be imported"
        );
    }

    #[test]
    fn an_import_of_a_nested_component_is_its_own_affair() {
        let component = wat(r#"(component (component (import "inner" (func))))"#);
        assert_eq!(
            refusal(&component),
            "the component doesn't export `angarium:provider/plugin@1.0.0`; it exports nothing"
        );
    }

    #[test]
    fn an_import_behind_a_nested_module_is_found() {
        let component = wat(r#"(component (core module (func)) (import "late" (func)))"#);
        assert!(refusal(&component).contains("imports `late`"));
    }

    #[test]
    fn the_export_must_have_the_contracts_types() {
        let component = wat(r#"(component
            (instance $empty)
            (export "angarium:provider/plugin@1.0.0" (instance $empty)))"#);
        assert!(refusal(&component).starts_with("the component doesn't fit the contract: "));
    }

    #[test]
    fn other_kinds_of_file_are_told_apart() {
        assert_eq!(refusal(b""), "this is not a WebAssembly component: it is not WebAssembly");
        assert_eq!(refusal(b"PK\x03\x04"), "this is not a WebAssembly component: it is not WebAssembly");
        assert!(refusal(&wat("(module)")).contains("it is a core module"));
    }

    #[test]
    fn native_code_is_refused() {
        let engine = wasmtime::Engine::default();
        let artifact = engine.precompile_component(&wat("(component)")).unwrap();
        assert!(refusal(&artifact).starts_with("this is a precompiled artifact"));
    }

    #[test]
    fn a_damaged_component_is_malformed() {
        let mut component = wat("(component (core module (func nop)))");
        component.pop();
        assert!(refusal(&component).starts_with("the component is not valid: "));
    }

    #[test]
    fn a_proposal_that_is_off_is_refused() {
        for module in ["(memory i64 1)", "(memory 1 1 shared)", "(func v128.const i64x2 0 0 drop)", "(tag)"] {
            let component = wat(&format!("(component (core module {module}))"));
            assert!(refusal(&component).starts_with("the component is not valid: "), "{module}");
        }
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let limits = CallLimits { component: 10, ..CallLimits::default() };
        assert_eq!(refusal_under(limits, &[0; 11]), "the component has 11 bytes, 10 are allowed");
    }

    #[test]
    fn what_is_too_complex_is_not_compiled() {
        let component = wat("(component (core module (func) (func nop nop nop nop)))");
        let limits = CallLimits { functions: 1, ..CallLimits::default() };
        assert!(refusal_under(limits, &component).contains("more than 1 functions"));
        let limits = CallLimits { function_body: 4, ..CallLimits::default() };
        assert!(refusal_under(limits, &component).contains("a function of 6 bytes"));
    }

    #[test]
    fn a_changed_byte_is_refused() {
        let limits = CallLimits { live_instances: 1, ..CallLimits::default() };
        let runtime = Runtime::new(RuntimeSettings { limits, ..RuntimeSettings::default() }).unwrap();
        let recorded = digest(b"one");
        let refusal = runtime.admit_recorded(b"two", &recorded).unwrap_err();
        assert!(matches!(refusal, AdmissionError::Changed { .. }));
    }
}
