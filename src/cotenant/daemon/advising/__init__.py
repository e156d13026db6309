"""The optional advisor: when it is asked, what it is asked, and what of its answer is used.

It must not reach the scheduler except by events.
"""
