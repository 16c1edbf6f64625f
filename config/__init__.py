"""What a person configures: settings and their load order, and the one table of request limits."""
