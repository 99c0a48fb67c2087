//! Mail servers that reply late, long, out of step, or as of old.
