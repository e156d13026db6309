"""Services: containers that use a GPU and that Cotenant does not route to.

This package assigns them to GPUs, from the strategy to the compose command. It must not know models, engines
or the scheduler.
"""
