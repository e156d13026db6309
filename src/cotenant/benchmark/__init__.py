"""Measures what clients get of one model, and of several at once, at any OpenAI-compatible address.

It must not import the daemon.
"""
