"""Services: containers that use a GPU and that Cotenant does not route to.

This wing pins them to GPUs, from the assignment to the compose command. It must not know models, engines or
the scheduler.
"""
