"""What we do with records: no HTTP, no SDK, no environment in here."""
