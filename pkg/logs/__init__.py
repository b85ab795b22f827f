"""Log and access records: how they are rendered, queued and written."""
