"""Runs the scheduler in virtual time, among simulated engines and clients, and replays request logs.

It must not access the machine.
"""
