"""Answers for every record of a data set, as files."""
