"""What all routes share: requests, bodies, limits, errors and streams. It must not know a specific API."""
