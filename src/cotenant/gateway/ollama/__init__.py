"""Ollama's API, translated to OpenAI's and back. It must not know engines."""
