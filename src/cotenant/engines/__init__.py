"""Runs models: all kinds of engines, how each is started, and why it ended.

It must not know the scheduler, the gateway or the configuration file.
"""
