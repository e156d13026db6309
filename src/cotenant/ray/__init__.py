"""Ray as what starts an agent on every machine and carries calls to it: the only folder that imports Ray.

It runs in processes of its own: the broker, a child of the daemon, and a shim on each node, a Ray actor.
Others import nothing of it but `environment`, which imports no Ray. It must not know the daemon, nor engines.
"""
