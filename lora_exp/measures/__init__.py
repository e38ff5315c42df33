"""What a run gained and what it cost, computed from its logits before and after fine-tuning. Needs numpy alone.

In reading order: `class_errors` (errors by class), `logits` (the logits of a run's images), `classification` (measures
of one classifier), `paired` (differences between two classifiers on the same images), `shift` (what a moved threshold
would have done), `measured` (all of it for one run), `gains` (its numbers and words, without numpy),
`intervals` (means over bases or seeds).
"""
