"""Data: sources, and what is cut from them."""
