"""`cotenant keys`: API keys besides those of the configuration."""
