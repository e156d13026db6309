"""What happens next: a state machine. Pure."""
