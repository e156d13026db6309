"""One revision a file, numbered; the newest is `migrations.HEAD`."""
