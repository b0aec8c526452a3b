"""Recipes: the schema and how a YAML becomes it. Loads without torch."""
