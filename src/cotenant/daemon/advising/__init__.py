"""The optional advisor: when it is asked, what it is asked, and how its answer is used.

It must not reach the scheduler except by events.
"""
