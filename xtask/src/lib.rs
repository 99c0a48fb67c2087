//! The developer's commands, as a library: the tests build components with it.

pub mod plugins;
