"""The hot path: forwards a client's request to an engine, and the response back.

It must not know the operator's API.
"""
