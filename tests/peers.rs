//! The gateway against programs that others wrote: what it sends is what they take.

mod clients;
mod mail;
mod openapi;
mod postfix;
mod prometheus;
mod twilio;
mod webhooks;
