"""What is remembered from one run to the next, in SQLite or PostgreSQL."""
