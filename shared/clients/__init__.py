"""One client per system behind the protocol of `system.py`."""
