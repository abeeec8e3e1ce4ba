"""Mixture of prompt experts: frozen backbones, prompted by what the other modalities say (arXiv 2403.10568).

`router`, `prompts`, `importance` and `attention` are the method; `sites` and `towers` let it into the encoders of
transformers, `tower_model` is the two-tower model and `fusemoe_host` prompts a model that `train` made.
"""
