"""The HTTP surface.

It knows the rest of the program only through `interfaces` and `services.interfaces`, and never the daemon.
"""
