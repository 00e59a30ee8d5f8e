"""The whole job, from files to files: load, analyze, probe, score, search, refit, rewrite, measure, report.

In: a model's path, rows and options. Out: the checked file, its plan and its report. Nothing is computed here: each
step is the room of its name, and this room knows their order.
"""
