"""Checks a machine for problems that affect models, and suggests fixes. It must not change anything."""
