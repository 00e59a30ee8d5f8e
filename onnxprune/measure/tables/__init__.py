"""What width costs in milliseconds: micro-models cut from the graph, timed into a table that drives the search."""
