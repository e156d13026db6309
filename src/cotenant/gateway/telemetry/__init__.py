"""Counters of requests, `/metrics` and the history of the last minutes. It must not influence requests."""
