"""Claims of published papers, each judged on the runs of a sweep.

In reading order: `catalogue` (the claims, one function each), `evidence` (the runs of a sweep, chosen by setting and
averaged within each seed), `verdict` (the outcome in a sentence and as a section), `figure` (the figure of a claim).
"""
