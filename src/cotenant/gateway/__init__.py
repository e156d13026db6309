"""The HTTP surface.

It knows the rest of the program only through `interfaces` and `services`, and never the daemon.
"""
