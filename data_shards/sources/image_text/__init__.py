"""Pictures with text and labels, a line of JSON each, or as three data sets are distributed."""
