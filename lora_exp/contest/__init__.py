"""A contest: methods compared after each was tuned with the same effort, by a protocol that was stated before.

It knows what is on disk; `sweeps.contest` runs it. In reading order:

- `protocol`: what is stated before anything runs, the file `contest.yaml` and its hash
- `space`: the points that an arm tries, and those that it tries next
- `scores`: what a run scored, and by which arm, point, base and target
- `rounds`: which jobs follow from the protocol and from the results so far
- `luck`: how much of a difference of tuned arms may be due to which points were picked
- `comparison`: paired differences over bases: tests, equivalence, power
- `verdict`: all that a contest found
- `words`: the verdict in sentences, and on the terminal
- `tables`: how the arms compare, with which power, what each cost, and how each was tuned
- `stated`: the protocol in words, and how its tests work
- `next_steps`: what it proposes at its end
- `figures`: the forest plot and the rate curves
- `latex`: the table of a paper
- `page`: the page, and the same in Markdown, LaTeX and CSV
- `write`: all of it, beside the report of its runs
"""
