"""`cotenant service`: runs the daemon under systemd. It must not know models."""
