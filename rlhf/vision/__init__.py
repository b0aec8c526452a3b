"""Retrieval alignment: a dual encoder learns taste from ranked partial orders (2406.09397), and keeps its ability."""
