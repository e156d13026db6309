"""Where things go. Pure."""
