"""Which engines share a card through MPS, and under which control daemon. It must not know HTTP."""
