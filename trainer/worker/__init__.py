"""One rank and its surroundings: world, device, seats, exchange, console, provenance."""
