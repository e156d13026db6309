"""Bytes of a model file, and what it weighs. Pure: it gets bytes and returns values."""
