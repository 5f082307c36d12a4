"""Measuring: statistics with intervals, timing in turns, accuracy in one pass, cost in a process of its own."""
