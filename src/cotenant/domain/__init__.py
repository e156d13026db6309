"""Values and errors: what the words of docs/design.md mean.

Standard library only, and nothing of this project.
"""
