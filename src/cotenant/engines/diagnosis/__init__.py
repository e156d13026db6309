"""Reads why an engine ended out of its exit status and its log, and what to do about it.

It must not start or stop anything.
"""
