"""Models, tokenizers and settings from the places where they lie, and what is said when one cannot be had."""
