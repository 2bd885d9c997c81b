"""What a process has one of: its I/O loop, what it shares, and the rules for concurrent work."""
