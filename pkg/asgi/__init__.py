"""ASGI applications: the event loop that serves them beside the front."""
