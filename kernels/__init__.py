"""One folder per op: contract and checks, Triton kernel, torch reference, cases. No re-exports here."""
