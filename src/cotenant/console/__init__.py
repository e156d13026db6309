"""The web console. It knows the daemon only through its public HTTP API."""
