"""Runs other programs until they end, within a time limit, and returns their output.

It knows the operating system only. It must not know what any program is for.
"""
