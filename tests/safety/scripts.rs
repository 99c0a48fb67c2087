//! Hostile scripts end within their memory, and leave nothing behind.
