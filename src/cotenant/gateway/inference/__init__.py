"""The hot path: a client's request carried to an engine and its response carried back.

It must not know the operator's API.
"""
