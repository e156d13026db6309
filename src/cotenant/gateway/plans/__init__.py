"""Plans for models, without loading them, for the console and other clients. It must not change anything."""
