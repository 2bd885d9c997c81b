"""What a process has once, however many callers share it."""
