"""Machines for tests of nodes: three with a Ray each, and what stands for a broker."""
