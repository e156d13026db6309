"""The sole writer: the event loop around the scheduler, its effects, leases and the status of models.

It must not know monitors, alerts or HTTP.
"""
