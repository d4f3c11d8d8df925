"""The online half: loads exported models and serves them with state kept per session. Never imports torch."""

__version__ = "0.1.0"
