"""Who may ask, and from where: API keys, sessions, allowed hosts. It must not know what is asked."""
