"""Tool calls and reasoning: what a model writes around them, and how it is told apart again.

A row of `formats` describes one way of writing calls. `grammar` makes a structural tag of it, so
that arguments follow their schemas; the parsers turn text back into content, reasoning and calls.
"""
