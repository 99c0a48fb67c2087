//! The behaviour of real servers, clients and people: situations from public bug reports.
//!
//! Each scenario represents a kind of fault, and keeps the right behaviour for later changes.

mod acceptance;
mod copies;
mod guides;
mod http;
mod operators;
mod packaging;
mod rules;
mod smtp;
