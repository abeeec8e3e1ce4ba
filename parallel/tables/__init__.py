"""Tables of learned rows for codes: replicated while small, spread over all ranks when large."""
