"""The fixtures under tests/golden, computed with PyTorch in float64. Run through tools/golden.py."""
