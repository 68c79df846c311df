"""How we reach the world: settings, errors, telemetry, mail, clients and state. Knows no recipe."""
