"""Models served through transformers' own code: slower, but any that it has."""
