"""Data that outlives a run of the daemon, in SQLite or PostgreSQL.

It must not know what the data is used for.
"""
