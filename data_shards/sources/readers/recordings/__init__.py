"""Files of sounds, signals and films: each kind opened in the same way, and read within bounds."""
