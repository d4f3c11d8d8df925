"""The routes: HTTP, server-sent events and WebSocket."""
