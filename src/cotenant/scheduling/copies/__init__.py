"""Several residencies of one model: which one serves a request, and how many there are.

It knows the state of the scheduler and how a residency begins and ends, but not how room is made.
"""
