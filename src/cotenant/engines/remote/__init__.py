"""Models of other servers of OpenAI's API, which take no memory here. Other kinds must not import it."""
