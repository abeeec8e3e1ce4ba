"""The parts of `benchmarks.gpu`: clock and waits, one layer, a whole step, the page."""
