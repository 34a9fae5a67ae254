"""Parts of ``encoding.py``."""
