"""The offline half: trains sequence models in PyTorch and exports them. Never imports the web framework."""

import os

# As in service/__init__.py, for whoever imports this half first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
