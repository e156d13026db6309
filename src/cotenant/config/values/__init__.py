"""What single keys hold that are more than a scalar; sections and their defaults are no business of these."""
