"""What a request is inside the engine: contexts, sampling parameters, plans and wire messages. No torch."""
