"""Fit a spike-driven language model into a memory budget."""
