"""What all kinds of engines share: server processes of ours, and servers that others run.

It must not know any kind.
"""
