"""The pages that people look at: they know the daemon through its public HTTP API alone."""
