"""What the README claims about the estimators, measured on real models."""
