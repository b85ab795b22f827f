"""Processes that run the service in a child process."""
