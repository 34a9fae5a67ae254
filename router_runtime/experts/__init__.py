"""LoRA experts in this process: one base model in memory, many adapters on it.

``config`` says what is served; ``adapter_folder`` and ``fitting`` check an adapter before PyTorch
sees it; ``shared`` loads weights once in a process, ``attaching`` puts the adapters of all pools on
them side by side, ``base_model`` and ``pool`` are one user's view of that; ``prompts``,
``sampling``, ``pieces`` and ``batches`` turn requests into text; ``engine`` is the one thread that
answers; ``chat`` speaks OpenAI's shapes, ``app`` and ``serve`` speak HTTP, and ``remote`` calls
such a server.

Importing this package loads nothing heavy; torch, transformers and peft are imported by
``attaching`` and what stands on it.
"""
