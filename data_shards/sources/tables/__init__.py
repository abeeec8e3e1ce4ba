"""Any tables as a source, by a mapping that says what is what."""
