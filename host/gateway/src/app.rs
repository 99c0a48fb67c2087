//! Use cases, one file a resource. A use case owns its transaction, its audit entry and the announcement of the change.
//! It knows nothing of HTTP.

pub mod message_actions;
