"""Reading checkpoints: files are checked whole before a weight is loaded."""
