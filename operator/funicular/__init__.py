"""Funicular: moves each LLM endpoint's easy requests to a cheaper route, measures, and takes them back."""

__version__ = "0.1.0"
