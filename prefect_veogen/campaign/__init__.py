"""Many requests from a manifest, made together and each on its own."""
