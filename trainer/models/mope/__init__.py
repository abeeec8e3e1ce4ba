"""Mixture of prompt experts: frozen backbones, prompted by what the other modalities say (arXiv 2403.10568).

`prompts/` is the method; `towers/` brings it into encoders of transformers, `host/` into a model that `train` made.
"""
