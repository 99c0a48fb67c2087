//! The HTTP server against clients that hold connections, guess keys and break the protocol.
