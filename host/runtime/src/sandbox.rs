//! The engine that every component runs in: its configuration, its clock and its places. It
//! knows nothing of providers.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmFeatures};

use super::{CallLimits, RuntimeError};

/// How often a running guest is looked at.
const TICK: Duration = Duration::from_millis(10);

/// The part of a memory that stays resident between two calls; the rest returns to the system.
const KEEP_RESIDENT: usize = 2 << 20;

/// A guest needs no more stack than this; a recursion without end traps soon.
const GUEST_STACK: usize = 512 << 10;

/// The WebAssembly features that guests may use: those that compilers emit for `wasm32-unknown-unknown`, and
/// components. Every further proposal would be unused code in the sandbox.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::COMPONENT_MODEL);

/// The engine, its ticker and the places for live instances. Components share it, so that the
/// clock runs as long as any of them may.
pub(super) struct Sandbox {
    engine: Engine,
    limits: CallLimits,
    places: Places,
    _ticker: Ticker,
}

impl Sandbox {
    pub(super) fn new(limits: CallLimits) -> Result<Arc<Self>, RuntimeError> {
        let engine = Engine::new(&config(&limits)).map_err(|error| RuntimeError::Engine(format!("{error:#}")))?;
        let ticker = Ticker::start(engine.clone())?;
        let places = Places::new(limits.live_instances);
        Ok(Arc::new(Self { engine, limits, places, _ticker: ticker }))
    }

    pub(super) const fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) const fn limits(&self) -> &CallLimits {
        &self.limits
    }

    /// Waits for a place. Calls are short, so the wait is; the pool is then never exhausted,
    /// and no guest is blamed for its neighbours.
    pub(super) fn place(&self) -> Place<'_> {
        self.places.take()
    }
}

fn config(limits: &CallLimits) -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(false)
        .max_wasm_stack(GUEST_STACK)
        .wasm_backtrace_max_frames(None)
        .memory_init_cow(true)
        .wasm_features(WasmFeatures::all().difference(FEATURES), false)
        .wasm_features(FEATURES, true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config
}

fn pool(limits: &CallLimits) -> PoolingAllocationConfig {
    let live = limits.live_instances;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(live)
        .total_core_instances(live.saturating_mul(limits.instances))
        .total_memories(live.saturating_mul(limits.memories))
        .total_tables(live.saturating_mul(limits.tables))
        .max_core_instances_per_component(limits.instances)
        .max_memories_per_component(limits.memories)
        .max_tables_per_component(limits.tables)
        .table_elements(limits.table_elements)
        .max_memory_size(limits.memory);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        // Without the scan every reset would write the whole of it: worse than nothing.
        pool.linear_memory_keep_resident(KEEP_RESIDENT).table_keep_resident(KEEP_RESIDENT).pagemap_scan(Enabled::Yes);
    }
    pool
}

/// A thread that moves the engine's epoch on, until it is dropped.
struct Ticker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: Engine) -> Result<Self, RuntimeError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let tick = move || {
            while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        };
        let thread = thread::Builder::new().name("epoch".to_owned()).spawn(tick).map_err(RuntimeError::Ticker)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It holds nothing that a panic could leave broken.
            let _ = thread.join();
        }
    }
}

/// The slots, one for each instance of the pool.
struct Places {
    count: Mutex<Count>,
    freed: Condvar,
}

/// Counts the waiters, because waking none is a system call too.
struct Count {
    free: u32,
    waiting: u32,
}

impl Places {
    const fn new(free: u32) -> Self {
        Self { count: Mutex::new(Count { free, waiting: 0 }), freed: Condvar::new() }
    }

    fn take(&self) -> Place<'_> {
        let mut count = self.lock();
        while count.free == 0 {
            count.waiting += 1;
            count = self.freed.wait(count).unwrap_or_else(PoisonError::into_inner);
            count.waiting -= 1;
        }
        count.free -= 1;
        Place(self)
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one live instance; given back when it is dropped.
pub(super) struct Place<'a>(&'a Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut count = self.0.lock();
        count.free += 1;
        if count.waiting > 0 {
            self.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn no_more_run_than_have_a_place() {
        let (places, running) = (Places::new(2), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _place = places.take();
                        assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
                        thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(places.lock().free, 2);
    }
}
