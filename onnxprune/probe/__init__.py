"""The graph run on rows, whole or with units gated: statistics, gradients, features, divergence.

In: a graph and feeds. Out: tensors. One interpreter with one hook (`interpreter`) serves all of it; `gates` is a plan
as such a hook.
"""
