"""One child process: its group, its port, its environment and its log.

It must not know which kind of engine runs in it.
"""
