"""A model as a service: predictions over HTTP, by Ray Serve."""
