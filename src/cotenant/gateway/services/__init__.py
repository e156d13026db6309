"""GPU configuration of services over HTTP. It must not know compose files or tables."""
