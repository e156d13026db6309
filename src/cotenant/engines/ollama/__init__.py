"""Models of an Ollama daemon that others run. Other kinds of engines must not import it."""
