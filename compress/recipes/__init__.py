"""Recipes: every option of `compress` in a TOML file, read, written, and three that ship (*.toml beside this)."""
