"""Files and batches: JSONL in, JSONL out, kept in a folder that survives restarts."""
