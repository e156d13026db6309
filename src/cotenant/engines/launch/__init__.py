"""Starts engines on the host or in a container (podman, docker, Apptainer).

It must not know the kinds of engines.
"""
