"""From the service's media host into the store: transferred, verified, with its provenance."""
