"""Steps that turn graded generations into training data, and the engine that runs them."""
