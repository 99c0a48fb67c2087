//! The API as clients meet it: accepted requests, refused ones, and the error texts.

mod audited;
mod bodies;
mod connections;
mod document;
mod errors;
mod idempotency;
mod keys;
mod message_jobs;
mod messages;
mod pagination;
mod providers;
mod roles;
mod routes;
mod search;
mod settings;
mod tenancy;
