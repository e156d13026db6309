"""Model files and their memory: bytes in, values out. Pure."""
