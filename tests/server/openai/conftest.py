"""The scripted server, for the tests of OpenAI's routes."""

from scripted_server import app, http, live, sdk, server_url, tokenizer

__all__ = ["app", "http", "live", "sdk", "server_url", "tokenizer"]
