"""HTTP clients and servers for tests."""
