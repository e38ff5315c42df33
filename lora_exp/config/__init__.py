"""What a run is and which value each key may hold; and from YAML and overrides to checked dataclasses.

In reading order:

- `fields`: dataclass fields that say, in words and in code, what a key may hold
- `images`: what is known of the images of a data set: shape, classes, mean and deviation
- `methods`: the fine-tuning methods by name
- `models`: the kinds of classifiers, and the keys that each kind uses
- `weights`: a file of trained weights, checked and hashed
- `spec`: everything that determines the numbers of a run, as frozen dataclasses
- `contest`: what a contest holds equal and how it judges
- `settings`: where a run is computed and recorded, which changes no number
- `names`: the names of groups and keys, and what a mistyped one may mean
- `compose`: Hydra and OmegaConf to spec and settings, and their errors to one line
- `hydra_rules`: which of Hydra's own keys may be set, so that no config can run code
"""
