//! What is particular: rules and scripts that are changed while the gateway runs.

mod declarative;
mod folder;
mod scripts;
mod try_out;
