"""Run the notebooks' first cell, as committed, in a fresh kernel that takes itself for Colab's.

The weekly workflow `colab.yml` does this; it needs the network and a few minutes. With an address
as argument it takes the course from there, to try a copy before it is published:

    python .ci/colab_cell.py http://127.0.0.1:8000/baize-course
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(Path(__file__).parent.parent / "notebooks/00_start_here.ipynb", 4)
first = next(cell.source for cell in notebook.cells if "google.colab" in cell.source)
if address := "".join(sys.argv[1:2]):
    first = re.sub(r'"https://github\.com/[^"]+"', f'"{address}"', first)
pretend = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"
check = "from baize_lib.course import check_environment\nprint(check_environment())"
cells = [nbformat.v4.new_code_cell(source) for source in (pretend, first, check)]
fresh = nbformat.v4.new_notebook(cells=cells)
NotebookClient(fresh, timeout=1800, kernel_name="python3").execute()
for cell in fresh.cells[1:]:
    print("".join(output.get("text", "") for output in cell.outputs))
