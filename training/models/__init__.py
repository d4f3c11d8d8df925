"""Models: each computes `y, state' = f_W(state, x)` with batch-first tensors."""
