"""What is due next and what has changed lately, without a look at all of it."""
