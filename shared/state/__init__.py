"""What Concord remembers: rows in tables, messages in queues, permits."""
