"""The offline half: trains sequence models in PyTorch and exports them. Never imports the web framework."""
