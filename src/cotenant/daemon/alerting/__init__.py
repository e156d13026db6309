"""Alerts: the rules that raise and clear them, and how they are sent.

It must not change what the scheduler does.
"""
