//! The one import of a provider: lines in the operator's log.

pub use crate::bindings::angarium::provider::log::Level;

/// Writes one line; lines over 4 KiB are cut by the gateway. Off wasm32 it goes to standard error.
pub fn write(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::angarium::provider::log::write(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Makes a panic leave its message and place in the log before it becomes a bare trap.
pub(crate) fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string()))));
    }
}
