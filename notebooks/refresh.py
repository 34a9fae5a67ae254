"""Execute the notebooks and write them back stripped: python notebooks/refresh.py [FILE ...].

What stays of the outputs are the pictures of cells that are tagged ``keep-output``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

KEEP = "keep-output"
CELL_S = 300


def executed(path: Path, cwd: Path) -> nbformat.NotebookNode:
    """Return the notebook executed in ``cwd`` by this very interpreter; a failing cell raises."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="kernel-") as temporary:
        write_kernel_spec(Path(temporary, "kernels", "here"))
        specs = KernelSpecManager(kernel_dirs=[f"{temporary}/kernels"])
        kernel = KernelManager(
            kernel_name="here",
            kernel_spec_manager=specs,
            connection_file=f"{temporary}/connection.json",
        )
        where = {"metadata": {"path": str(cwd)}}
        client = NotebookClient(notebook, km=kernel, timeout=CELL_S, resources=where)
        return client.execute(env={**os.environ, "IPYTHONDIR": temporary})


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without counts, times and outputs but for the pictures to keep."""
    notebook.metadata = {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            kept = [out.get("data", {}) for out in cell.outputs] if KEEP in tags else []
            pictures = [{"image/png": data["image/png"]} for data in kept if "image/png" in data]
            cell.outputs = [nbformat.v4.new_output("display_data", one) for one in pictures]
            cell.execution_count = None
    return notebook


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted(Path(__file__).parent.glob("*.ipynb"))):
        with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
            nbformat.write(stripped(executed(file, Path(folder))), file)
