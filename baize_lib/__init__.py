"""The small library behind the course: ten wings, each one step from seeds to a chatbot."""

import os
import warnings

# Torch's threads spin while they wait, which beside any other busy process is 20 times slower than
# sleeping. It is read once, when torch is first imported, so it is said here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The course uses plain-text progress, so tqdm need not ask for widgets in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
