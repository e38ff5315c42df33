"""Changes to the layers of a frozen base: LoRA, DoRA, PiSSA, full fine-tuning and others.

In reading order:

- `plan`: what a method does to each layer, before anything is trained
- `updates`: the kinds of change, with outputs and gradients written by hand
- `initialisation`: the values that the factors start from
- `layer`: one layer of a whole pack as an autograd function
- `pack`: the stacked adapters of a pack of jobs
- `adapted`: one adapted classifier, and the file of an adapter
- `peft`: adapters in PEFT's file format
"""
