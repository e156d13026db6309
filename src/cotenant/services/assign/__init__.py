"""Which GPU each service is assigned to: strategies, warnings, budgets. Pure: values in, values out."""
