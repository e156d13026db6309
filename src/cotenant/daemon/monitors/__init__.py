"""What the daemon looks at by itself: cards, files, engines, loads.

Monitors post events to the core and must not know HTTP.
"""
