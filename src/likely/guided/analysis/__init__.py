"""What static analysis knows about a place in code: providers, and the processes that they run in."""
