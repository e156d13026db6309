"""Questions about the state of the scheduler that change nothing; they know no events and no commands."""
