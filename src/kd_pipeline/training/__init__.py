"""The training loop, on Lightning Fabric, and what it trains: teachers and students."""
