"""The GPUs of this machine, its memory, and the CUDA MPS daemons on it.

Knows nothing of models' engines or of HTTP.
"""
