"""OpenAI's Responses: conversations of items, replies that are kept, streams of typed events."""
