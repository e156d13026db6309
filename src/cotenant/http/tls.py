"""Checks the certificates of other servers against the authorities that this machine trusts.

OpenSSL reads them from the system's folder, and from `SSL_CERT_FILE` and `SSL_CERT_DIR`.
"""

import functools
import ssl


@functools.cache
def client_context() -> ssl.SSLContext:
    """Return the context that checks certificates. It is created once: that takes tens of milliseconds."""
    return ssl.create_default_context()


def tls_fault(error: OSError) -> str | None:
    """Return what is wrong with a server's TLS; None for any other error, or one that may be temporary."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    reason = (error.reason or "unknown").replace("_", " ").lower()
    return f"it does not speak TLS correctly: {reason}"
