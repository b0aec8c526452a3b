"""Moving the learner's weights into every engine, and proving that they arrived."""
