"""The boundary to DeepSpeed: engine, its configuration, gradient reduction, pieces of parameters."""
