"""Engines for tests: fake and real ones, and orders for them."""
