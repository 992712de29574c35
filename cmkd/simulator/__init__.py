"""The simulated road, its two cameras, and who is visible in which image."""
