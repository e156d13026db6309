"""Measures one model, and several at once, at any OpenAI-compatible address.

It must not import the daemon.
"""
