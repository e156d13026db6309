"""vLLM's server: its releases, its command line and its sleep mode.

Other kinds of engines must not import it.
"""
