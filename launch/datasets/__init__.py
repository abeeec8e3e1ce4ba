"""What the command line does with data sets: pack, inspect, a page."""
