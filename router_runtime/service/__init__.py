"""The service: an OpenAI-compatible gateway that routes, explains, limits and counts."""
