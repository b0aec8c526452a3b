"""What draws from a model that stays as it is and writes down what came of it."""
