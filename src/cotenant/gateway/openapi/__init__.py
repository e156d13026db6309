"""The OpenAPI document of the operator's API. It is imported only for its route, since the import is slow."""
