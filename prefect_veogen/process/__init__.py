"""What a process has one of: its I/O loop, and the rules for concurrent work."""
