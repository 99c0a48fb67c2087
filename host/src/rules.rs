//! What is particular: conditions and scripts that operators and tenants change while the gateway
//! runs. Pure: facts, time and chance go in, a decision comes out.

pub mod cases;
pub mod reference;
pub mod script;
