"""MoPE on pretrained encoders of pictures and texts (`mope.image`, `mope.text`)."""
