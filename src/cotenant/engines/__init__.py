"""Running one model."""
