"""HTTP/1.1 as a client: one connection, and small requests on top of it.

It knows addresses and bytes. It must not know what an engine, a model or a daemon is.
"""
