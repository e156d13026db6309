"""The operator's API for models, decisions, logs, alerts and the doctor. It must not know the hot path."""
