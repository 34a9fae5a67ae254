"""The router as a LoRA adapter: ``router-train fit-adapter``, and runs with ``adapter``."""
