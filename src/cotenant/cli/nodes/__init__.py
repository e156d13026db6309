"""The commands about several machines."""
