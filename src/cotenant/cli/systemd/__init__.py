"""`cotenant systemd`: runs the daemon as a systemd service. It must not know models."""
