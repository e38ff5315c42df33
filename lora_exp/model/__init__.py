"""The images and the base classifier.

In reading order:

- `data`: the splits of a data set as tensors on the device, normalised batch by batch
- `architecture`: the shapes of a classifier's layers
- `base`: the base classifier, its training, and its form as a `torch.nn.Module`
"""
