//! The gateway against programs that others wrote: what it sends is what they take.

mod mail;
mod openapi;
mod postfix;
mod prometheus;
mod twilio;
mod webhooks;
