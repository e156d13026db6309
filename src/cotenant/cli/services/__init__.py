"""`cotenant services`: containers that are pinned to GPUs. It must not know the database."""
