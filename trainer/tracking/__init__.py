"""Where a run's record goes: JSON lines, MLflow behind a queue and a spool, several, none."""
