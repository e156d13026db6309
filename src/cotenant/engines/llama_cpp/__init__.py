"""llama.cpp: its builds, its command line, its memory report, its embedded worker.

Other kinds of engines must not import it.
"""
