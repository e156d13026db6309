"""The same scheduler in virtual time: seeded worlds in which things go wrong, and replays of traces.

It must not reach the machine.
"""
