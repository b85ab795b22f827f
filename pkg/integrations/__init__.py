"""What other libraries use of this package.  Nothing else imports it, and it needs them, so it is theirs to load."""
