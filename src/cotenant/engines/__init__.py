"""Runs one model: every kind of engine, what starts it, and why it ended.

It must not know the scheduler, the gateway or the configuration file.
"""
