"""Services in containers: their compose files, the files that pin them to GPUs, and how those are applied."""
