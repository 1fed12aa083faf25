"""Decides: facts in, Plan and Findings out. No I/O, no clock, no randomness."""
