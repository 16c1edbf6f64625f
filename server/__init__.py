"""The API process: HTTP, streams, supervision of the model worker. Never imports torch."""
