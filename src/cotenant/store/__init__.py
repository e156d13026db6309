"""What is remembered from one run to the next, in SQLite or PostgreSQL.

It must not know what the values are used for.
"""
