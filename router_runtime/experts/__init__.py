"""LoRA experts in this process: one base model in memory, many adapters on it.

``config`` says what is served; ``adapter_folder`` and ``fitting`` check an adapter before PyTorch
sees it; ``base_model`` and ``pool`` hold the weights; ``prompts``, ``sampling``, ``pieces`` and
``batches`` turn requests into text; ``engine`` is the one thread that owns the model; ``chat``
speaks OpenAI's shapes, ``app`` and ``serve`` speak HTTP, and ``remote`` calls such a server.

Importing this package loads nothing heavy; torch, transformers and peft are imported by
``base_model``, ``pool``, ``prompts``, ``sampling`` and ``batches``.
"""
