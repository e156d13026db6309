"""What happens next: a state machine of events in and commands out.

Pure: it reads no clock and starts nothing.
"""
