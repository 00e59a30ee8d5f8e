"""From scores and a budget to a plan.

In: a model in gated space, rows, options. Out: a `graph.plan.Plan`. The planner measures (scores, then the damage
table) and asks `allocate`, which is numpy only and is handed `evaluate(plan)`, never a model.
"""
