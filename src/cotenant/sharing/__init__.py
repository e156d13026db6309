"""Engines that share a card through MPS. Daemon and agent use it; it knows neither of them."""
