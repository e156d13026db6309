"""Host RAM as a tier above the disk: which model files it caches, and how much of them an engine has read.

It must not know devices or the scheduler.
"""
