"""The served process: one writer, its effects and monitors, and the wiring of all parts.

Only the command line stands above it.
"""
