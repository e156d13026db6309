"""Model files and shapes for tests."""
