"""Many requests from a manifest: checked together, made independently, reported row by row."""
