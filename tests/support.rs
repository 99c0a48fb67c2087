//! The fixtures of scenarios: a real PostgreSQL, real gateway processes, real receivers.

pub mod answers;
pub mod audit;
pub mod authority;
pub mod collector;
pub mod component;
pub mod database;
pub mod gateway;
pub mod load;
pub mod mail_script;
pub mod mail_server;
pub mod messages;
pub mod peer;
pub mod process;
pub mod proxy;
pub mod scripted_mail;
pub mod seed;
pub mod sink;
pub mod small_disk;
