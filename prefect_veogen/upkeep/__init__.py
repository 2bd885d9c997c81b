"""Keeping the ledger in order: sweep, compare with the statement, let a person decide."""
