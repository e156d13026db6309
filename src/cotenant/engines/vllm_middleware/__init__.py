"""What runs inside vLLM's own process: standard library only, found there by PYTHONPATH."""
