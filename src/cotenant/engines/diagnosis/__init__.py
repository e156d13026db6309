"""Finds out why an engine ended, from its exit status and its log, and what to do about it.

It must not start or stop anything.
"""

from cotenant.engines.diagnosis.diagnosis import diagnose

__all__ = ["diagnose"]
