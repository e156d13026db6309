"""Looks a machine over for what keeps models from running well, and says what mends it."""
