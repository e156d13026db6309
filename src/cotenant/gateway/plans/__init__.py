"""Plans without loading anything, for the console and other clients. It must not change anything."""
