"""Alerts: the rules that raise and clear them, and who is told.

It must not change what the scheduler does.
"""
