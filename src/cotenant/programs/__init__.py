"""Other programs: run to their end within a time limit, with their output.

It knows the operating system only. It must not know what any program is for.
"""
