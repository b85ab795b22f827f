"""A Python microservice, and a host for one: truthful health probes, a PostgreSQL pool, a drain that loses nothing.

It is not a framework: the application inside is an `http.server` handler class or a WSGI callable.
"""
