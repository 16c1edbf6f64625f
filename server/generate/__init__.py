"""The native routes of text-generation-inference and SGLang."""
