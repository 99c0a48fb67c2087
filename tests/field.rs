//! What real servers, clients and people do: situations from public bug reports.
//!
//! Each scenario stands for a kind of fault, and holds the right behaviour for later changes.

mod acceptance;
mod copies;
mod guides;
mod http;
mod operators;
mod rules;
mod smtp;
