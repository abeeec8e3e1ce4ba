"""What a layer does to rows besides products of matrices: placed, gathered, summed, sent; for GPUs in Triton."""
