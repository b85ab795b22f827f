"""The service with worker processes, as a whole: `python -m pkg --workers 2`."""
