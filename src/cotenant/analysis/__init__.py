"""Bytes of a model file, and what it weighs. Pure."""
