"""Evaluate a model, or compare results: `python scripts/evaluate.py MODEL --tasks math`, as `make evaluate` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package `evaluation` lies beside this folder

from evaluation.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
