"""MoPE on a FuseMoE model that `train` made (`mope.host`)."""
