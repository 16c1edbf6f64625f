"""Decides what each step runs: queue, batch construction, preemption. Pure Python, no clock, no torch."""
