"""Runs code nobody trusts, on the kernel's own calls: no daemon, no container engine, no privilege needed."""
