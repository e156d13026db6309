"""The program that runs on each machine of a fleet: devices measured, engines run, requests let in to them.

It must not know Ray, the scheduler, or the daemon's configuration: what it needs comes with its calls.
"""
