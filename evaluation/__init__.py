"""Lighteval tasks, the model adapter that lighteval drives, the protocols, and the runner: `make evaluate`."""
