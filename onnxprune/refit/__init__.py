"""What stays makes up for what goes: least squares, sparse weights, tiles, stand-ins for dropped branches.

In: a plan and rows. Out: the same plan with weights and intercepts. `solvers` is numpy in, numpy out, knowing no graph.
"""
