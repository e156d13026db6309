"""Other machines as the daemon uses them: where their engines start, and what they report to the core."""
