//! The provider components as they are built, in the gateway's sandbox.

mod runtime;
