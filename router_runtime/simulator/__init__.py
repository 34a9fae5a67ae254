"""A SIMULATOR of an OpenAI-compatible provider, to practise on: no real model answers here.

Its models have scripted skill per topic, latency, token usage, errors and rate limits. Everything
is drawn from digests of the seed and the call, so equal calls are answered alike, in whatever order
they come. It serves tests, demos and load tests; real providers are called by the same client code.
"""
