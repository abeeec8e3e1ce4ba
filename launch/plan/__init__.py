"""What a run would take: memory, traffic, time."""
