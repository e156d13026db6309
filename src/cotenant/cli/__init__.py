"""The command line: one file or folder per command.

Commands speak HTTP to a running daemon, or call the pure packages.
"""
