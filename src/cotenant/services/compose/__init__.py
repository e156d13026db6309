"""The operator's compose files, the files that pin services to GPUs, and how an assignment is applied.

It must not know how assignments are made.
"""
