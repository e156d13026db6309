"""What the daemon watches: cards, files, engines, loads.

Monitors post events to the core and must not know HTTP.
"""
