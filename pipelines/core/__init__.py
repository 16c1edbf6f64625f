"""What a request is inside the engine: contexts, parameters, plans and wire messages. No torch."""
