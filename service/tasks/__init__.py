"""From what a client sends to tensors, and from the model's outputs to what a client reads."""
