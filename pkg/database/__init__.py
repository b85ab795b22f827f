"""The PostgreSQL pool and its check."""
