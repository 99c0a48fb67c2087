//! The developer's commands, as a library, so that tests build components as `cargo xtask plugins` does.

pub mod plugins;
