"""Fetches models from a model hub (Hugging Face). It must not know engines or the scheduler."""
