"""Requests: the server, and how handler classes and WSGI applications are hosted."""
