"""What all routes share: ASGI helpers, bodies, limits, errors and streams. It must not know any one API."""
