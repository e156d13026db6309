"""Wiring: the served process."""
