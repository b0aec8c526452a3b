"""The only package that imports Ray: processes, placement, deadlines."""
