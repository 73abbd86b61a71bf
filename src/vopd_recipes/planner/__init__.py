"""Does a recipe fit? Architectures without weights → activations → memory → the smallest change that fits."""
