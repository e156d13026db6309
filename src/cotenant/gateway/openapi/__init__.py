"""The OpenAPI document of the operator's API. Importing it is slow; only its route does."""
