//! The API as clients meet it: what it takes, what it refuses, and in which words.

mod bodies;
mod connections;
mod document;
mod errors;
mod idempotency;
mod keys;
mod messages;
mod pagination;
mod providers;
mod roles;
mod routes;
mod settings;
mod tenancy;
