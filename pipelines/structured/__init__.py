"""Structured output: text that follows a grammar, by masking the logits of each step.

Grammars are compiled by xgrammar (https://arxiv.org/abs/2411.15100) in a process of their own,
because a client's schema decides how long that takes; the worker only walks what was compiled.
"""
