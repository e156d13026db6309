"""HTTP/1.1 as a client: one connection, and a client for small requests.

It knows addresses and bytes. It must not know what an engine, a model or a daemon is.
"""
