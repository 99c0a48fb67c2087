//! The gateway against programs of others: they accept its requests.

mod clients;
mod mail;
mod openapi;
mod postfix;
mod prometheus;
mod twilio;
mod webhooks;
