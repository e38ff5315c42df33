"""From specs to results.

In reading order:

- `laboratory`: from specs to stored results; calls everything else here
- `executor`: what an executor of packs has to offer, and training packs in ever smaller parts
- `base`: trained bases, from the store or trained once
- `packing`: which jobs train together
- `pack`: trains and evaluates one pack
- `loop`: the fine-tuning loop
- `checkpoint`: the state of a job's training, to continue from
- `evaluation`: predictions and errors per class
- `probe`: whether the bits of a module's jobs depend on their pack, tried once
- `halving`: successive halving, which stops the worst jobs of a sweep early
"""
