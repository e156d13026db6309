"""Which GPU each service is pinned to: strategies, warnings, budgets. Pure: values in, values out."""
