"""The cases, one module per model family; each has `CASES`."""
