"""Tools for asyncio and threads that the shell shares. They know nothing of models, GPUs or HTTP."""
