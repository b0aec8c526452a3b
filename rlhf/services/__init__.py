"""Models that serve a run beside the policy, over HTTP: reward models and judges."""
