"""A local web page that shows rows of generations: `ns view`."""
