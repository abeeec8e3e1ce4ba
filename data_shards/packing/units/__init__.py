"""Packing by work units: encoded anywhere, cut into shards by one process that sees sizes only, written anywhere."""
