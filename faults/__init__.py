"""Proof under fire: every outgoing call broken in every way, and seeded chaos with real processes. Never deployed."""
