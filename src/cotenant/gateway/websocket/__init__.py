"""WebSocket to engines: passed frame by frame; it must not know what is said."""
