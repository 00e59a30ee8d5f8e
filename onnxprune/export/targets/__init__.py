"""What is shipped to: one file a target, and a line in `registry`."""
