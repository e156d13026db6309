"""Many models, few GPUs, no out-of-memory."""

__version__ = "0.1.0"
