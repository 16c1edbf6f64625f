"""What a model is: its configuration read from its folder (no torch) and how it is built."""
