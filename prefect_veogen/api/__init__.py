"""The service: HTTP, what its responses mean, its rate limit, and polling."""
