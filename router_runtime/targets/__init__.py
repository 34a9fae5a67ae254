"""Where candidates are called: OpenAI-compatible servers, and a fake for tests and dry runs."""
