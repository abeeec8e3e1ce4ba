"""A data set that is there: copied, and its versions forgotten."""
