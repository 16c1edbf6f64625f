"""The Messages API, as Anthropic clients speak it."""
