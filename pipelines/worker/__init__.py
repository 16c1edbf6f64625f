"""The model worker process: scheduler and runner behind one socket."""
