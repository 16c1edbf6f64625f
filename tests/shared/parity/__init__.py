"""Logits of our models against transformers' own: the cases, and what measures them."""
