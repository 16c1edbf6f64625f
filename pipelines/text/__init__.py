"""From generated tokens to text: incremental decoding and stop strings. No torch."""
