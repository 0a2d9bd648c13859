"""The training loop, and what it trains: teachers and students."""
