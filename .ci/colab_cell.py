"""Run the notebooks' Colab cell, as committed, in a fresh kernel that takes itself for Colab's.

The weekly workflow `colab.yml` does this; it needs the network and a few minutes.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(Path(__file__).parent.parent / "notebooks/00_start_here.ipynb", 4)
cell = next(cell for cell in notebook.cells if "google.colab" in cell.source)
pretend = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"
check = "from baize_lib.course import check_environment\nprint(check_environment())"
cells = [nbformat.v4.new_code_cell(source) for source in (pretend, cell.source, check)]
fresh = nbformat.v4.new_notebook(cells=cells)
NotebookClient(fresh, timeout=1800, kernel_name="python3").execute()
print(fresh.cells[-1].outputs[0].text)
