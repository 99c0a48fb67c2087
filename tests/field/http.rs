//! HTTP servers: throttles, refused streams, long and broken answers, one customer among many.
