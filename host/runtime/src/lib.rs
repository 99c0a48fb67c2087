//! The provider components in their sandbox: admission, calls, and which version serves.
//!
//! A guest is given plain data and returns plain data. Nothing here does network I/O, knows a
//! secret or decides what happens to a delivery; wasmtime is known nowhere else. All of it
//! blocks: a call takes some tens of microseconds and is killed after
//! [`CallLimits::deadline`]; an admission takes as long as a compilation and belongs on a
//! blocking thread.

mod address_keyword;
mod admission;
mod answer;
mod artifacts;
mod call;
mod component;
mod descriptor;
mod evidence;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest;
mod inspection;
mod provider_schema;
mod registry;
mod sandbox;
mod speech;
mod v1;

use std::{collections::HashSet, fmt, io, path::PathBuf, sync::Arc, time::Duration};

pub use admission::AdmissionError;
pub use call::{CallError, Called, GuestFault, GuestFaultKind, Usage};
pub use component::Component;
pub use descriptor::DescriptorProblem;
pub use registry::{Listed, QuarantineScope, Quarantined, Registry};

use artifacts::ArtifactCache;
use sandbox::Sandbox;

use angarium_domain::message::MOST_CONTENT;

/// The most that a guest may carry from one step to the next, in bytes.
pub const MAX_STATE: usize = 64 << 10;

/// The limits of a component and of each of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// CPU time of one call, instantiation included, looked at every 10 ms. It is the thread's
    /// own time, so that a busy machine kills no innocent.
    pub deadline: Duration,
    /// The additional deadline for each mebibyte of the call's input.
    pub deadline_per_mebibyte: Duration,
    /// Wall-clock time of one call, however little of it the guest ran. A guest waits for nothing,
    /// so what takes that long is the machine's doing.
    pub patience: Duration,
    /// Linear memory of one call, all memories together, in bytes.
    pub memory: usize,
    /// Linear memories of one component.
    pub memories: u32,
    /// Tables of one component.
    pub tables: u32,
    /// Elements of one table.
    pub table_elements: usize,
    /// Core instances of one component.
    pub instances: u32,
    /// The most input of one call, in bytes. Every accepted message fits: its content has at most [`MOST_CONTENT`], and
    /// a connection's config and the addresses come on top.
    pub input: usize,
    /// The most output of one call, in bytes as the host would hold it. A request repeats the call's input and more:
    /// [`MOST_CONTENT`] already counts its JSON escapes, and as a form one byte becomes three.
    pub output: usize,
    /// Log lines of one call; further ones are dropped.
    pub log_lines: u32,
    /// Calls at the same time; further ones wait.
    pub live_instances: u32,
    /// Size of a component, in bytes.
    pub component: usize,
    /// Functions of a component.
    pub functions: u32,
    /// The most code of one function, in bytes. The cost of a compilation grows faster than this.
    pub function_body: u32,
    /// How long an admission waits for a compilation.
    pub compilation: Duration,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(50),
            deadline_per_mebibyte: Duration::from_millis(50),
            patience: Duration::from_secs(10),
            memory: 64 << 20,
            memories: 2,
            tables: 8,
            table_elements: 20_000,
            instances: 16,
            input: MOST_CONTENT + (1 << 20),
            output: 3 * MOST_CONTENT,
            log_lines: 64,
            live_instances: 128,
            component: 16 << 20,
            functions: 50_000,
            function_body: 512 << 10,
            compilation: Duration::from_secs(60),
        }
    }
}

impl CallLimits {
    /// Returns the CPU time of one call with this input in bytes.
    #[must_use]
    pub fn deadline_of(&self, input: usize) -> Duration {
        self.deadline + self.deadline_per_mebibyte.mul_f64(input as f64 / f64::from(1 << 20))
    }
}

/// How a runtime is set up.
#[derive(Debug, Clone, Default)]
pub struct RuntimeSettings {
    /// Without it each start compiles.
    pub cache: Option<CacheSettings>,
    pub limits: CallLimits,
}

/// The folder of compiled components between two starts.
#[derive(Clone)]
pub struct CacheSettings {
    pub folder: PathBuf,
    /// Authenticates the stored artifacts, so that a writer of the folder cannot make the gateway run code: derived
    /// from the gateway's own key, and never stored.
    pub key: [u8; 32],
}

impl fmt::Debug for CacheSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheSettings").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Why the runtime can't start.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine refused its settings or the memory that it reserves.
    #[error("the WebAssembly engine can't start: {0}")]
    Engine(String),
    /// The thread that interrupts guests can't start.
    #[error("the thread that interrupts guests can't start: {0}")]
    Ticker(#[source] io::Error),
    /// The cache folder can't be made, or made private.
    #[error("the cache folder {} can't be used: {source}; give another as `providers.cache_folder`", folder.display())]
    CacheFolder { folder: PathBuf, source: io::Error },
}

/// The sandbox for components. It is cheap to share; components keep the needed parts of it alive.
pub struct Runtime {
    sandbox: Arc<Sandbox>,
    artifacts: Option<ArtifactCache>,
    compiler: admission::ComponentCompiler,
}

impl Runtime {
    /// Starts the engine and its clock.
    ///
    /// # Errors
    /// If the engine can't start, or the cache folder can't be made private.
    pub fn new(settings: RuntimeSettings) -> Result<Self, RuntimeError> {
        let sandbox = Sandbox::new(settings.limits)?;
        let cache = settings.cache.map(|cache| ArtifactCache::open(cache, sandbox.engine()));
        let artifacts = cache.transpose()?;
        Ok(Self { sandbox, artifacts, compiler: admission::ComponentCompiler::default() })
    }

    /// Turns a file into a component that can be called, or says why not. Blocks: compiling
    /// takes up to [`CallLimits::compilation`].
    ///
    /// # Errors
    /// The first check that the file fails, in the order of [`AdmissionError`]'s cases.
    pub fn admit(&self, bytes: &[u8]) -> Result<Arc<Component>, AdmissionError> {
        admission::admit(&self.sandbox, self.artifacts.as_ref(), &self.compiler, bytes)
    }

    /// Removes compiled components that are not needed any more: those of other components than these (by SHA-256,
    /// hexadecimal), and those of another runtime. Blocks.
    pub fn prune(&self, installed: &HashSet<String>) {
        if let Some(artifacts) = &self.artifacts {
            artifacts.prune(installed);
        }
    }

    /// Does the same as [`Self::admit`] for a file that was recorded earlier: a changed byte is refused before anything
    /// reads it.
    ///
    /// # Errors
    /// [`AdmissionError::Changed`], and those of [`Self::admit`].
    pub fn admit_recorded(&self, bytes: &[u8], digest: &str) -> Result<Arc<Component>, AdmissionError> {
        let found = admission::digest(bytes);
        if found == digest {
            self.admit(bytes)
        } else {
            Err(AdmissionError::Changed { recorded: digest.to_owned(), found })
        }
    }
}
