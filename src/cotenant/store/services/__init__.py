"""GPU configuration of services in the database: tables, rows and the book that the daemon uses.

It must not know compose files.
"""
