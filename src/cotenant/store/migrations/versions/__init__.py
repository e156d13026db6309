"""One revision a file, numbered; the newest is `versions.HEAD`."""
