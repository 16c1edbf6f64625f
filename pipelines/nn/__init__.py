"""Layers built on the kernels; they hold weights and know nothing of files, batching or sampling.

Shape suffixes: T tokens, C hidden size, H heads, D head_dim, F intermediate size, V vocabulary.
"""
