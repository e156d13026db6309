"""The HTTP surface.

It uses the rest of the program only through `interfaces` and `services`. It must not know the daemon.
"""
