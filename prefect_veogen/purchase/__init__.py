"""Buying at most once: plan, submit, reconcile what is in doubt, wait."""
