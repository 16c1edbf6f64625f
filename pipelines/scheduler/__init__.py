"""Decides what each step runs: queue, batch construction, preemption. No clock, no torch."""
