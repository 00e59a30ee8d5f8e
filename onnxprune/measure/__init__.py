"""Figures about plans and files: cost, equality, accuracy, latency.

In: a graph, a plan, or two files and rows. Out: numbers with their intervals. It decides nothing.
"""
