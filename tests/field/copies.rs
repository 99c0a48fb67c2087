//! Copies: each recipient of a mail has an outcome of its own.
