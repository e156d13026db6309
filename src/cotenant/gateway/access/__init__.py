"""Access control: API keys, browser sessions, allowed hosts. It must not know what requests are for."""
