"""A first mapping and recipe from tables: types, times and keys guessed, and every guess said."""
