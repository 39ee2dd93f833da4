"""Small self-contained inputs for first steps and tests: a tiny model and a few word problems."""
