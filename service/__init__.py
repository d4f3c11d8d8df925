"""The online half: loads exported models and serves them with state kept per session. Never imports torch."""

import os

# ONNX Runtime 1.29 and later reports to its maker from Linux too, unless told not to before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
