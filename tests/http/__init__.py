"""The HTTP client against hostile servers."""  # noqa: A005
