"""GPUs, drivers and MPS that tests make up."""
