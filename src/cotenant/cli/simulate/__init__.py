"""`cotenant simulate`: replays a log of requests on other GPUs or by other rules.

It must not ask a daemon.
"""
