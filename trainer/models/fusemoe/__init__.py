"""FuseMoE (arXiv 2402.03226): any modalities, fused by mixture-of-experts blocks."""
