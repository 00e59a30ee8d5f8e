"""Finding what can be cut: groups of units, residual branches, and the matrices that read them."""
