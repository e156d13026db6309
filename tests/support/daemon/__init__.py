"""The daemon as a process, what tests ask of it, and plain replacements of its parts."""
