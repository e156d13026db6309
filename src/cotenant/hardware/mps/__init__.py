"""CUDA Multi-Process Service: finds, starts, asks and stops MPS control daemons.

It must not know which models share a card; `daemon.sharing` decides that.
"""
