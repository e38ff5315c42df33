"""The images and the base classifier.

In reading order:

- `data`: data sets as normalised tensors on the device; reads, prepares and checks their files
- `embedded/`: the four MNIST files, compressed
- `architecture`: the shapes of a classifier's layers
- `base`: the base classifier, its training, and its form as a `torch.nn.Module`
"""
