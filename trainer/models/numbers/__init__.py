"""How numbers reach a model: their scale, their encoding, and what whole series are in a few of them."""
