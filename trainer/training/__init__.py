"""The training loop and what it keeps: schedule, progress, meter, usage, trace."""
