"""The daemon's side of other machines: the messages, the ways to them, and engines that run there.

It must not know Ray, nor the scheduler.
"""
