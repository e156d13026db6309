"""The configuration: `cotenant.yaml`, the environment, flags and the models folder, checked and watched.

It must not know the daemon or what settings are used for.
"""
