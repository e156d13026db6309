"""Containers for tests: podman with storage of its own, images, and fakes of docker and compose."""
