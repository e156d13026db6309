"""What the words mean: values, standard library only."""
