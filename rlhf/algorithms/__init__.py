"""Pure tensor maths: advantages, losses, corrections, KL, aggregation. Learner and loop stay blind to it.

One convention rules all of it: select, never multiply. Only trained tokens enter a formula, so a NaN under
the mask reaches neither a loss nor a gradient.
"""
