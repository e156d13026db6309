"""GPU configuration of services in the database: tables, rows, and the store that the daemon uses.

It must not know compose files.
"""
