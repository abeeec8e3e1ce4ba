"""How values are distributed: moments and quantile sketches, merged from pieces."""
