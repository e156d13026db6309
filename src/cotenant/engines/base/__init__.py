"""What the kinds of engines share: a server process of ours, and a server that others run.

It must not know any one kind.
"""
