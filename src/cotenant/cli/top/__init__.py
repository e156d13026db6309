"""`cotenant top`: a live view of a running daemon in the terminal.

It must not know anything but the HTTP API.
"""
