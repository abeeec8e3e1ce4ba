"""A run as one typed value: recipes, sections, paths, and one sentence for each mistake."""
