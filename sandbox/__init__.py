"""Simulators, demo records and a stand-in host: everything needed to try Concord without an account. Never deployed."""
