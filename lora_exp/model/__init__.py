"""The images and the base classifier.

In reading order:

- `data`: the splits of a data set as tensors on the device, normalised batch by batch
- `architecture`: what a network is: its layers, and a pass of images with a callback for these
- `stack`: convolutions and linear layers with ReLU, by hand
- `module`: any torch module as a network
- `learner`: a module whose own weights are trained
- `parts`: which layers a part of a module has
- `swapped`: what takes the place of torch's layers in it
- `prefix`: the part of it that no adapter changes
- `builders`: the modules of a config: of torchvision, of timm, of a Python session
- `fingerprint`: a hash of what a module of a Python session computes
- `vit`: a plain Vision Transformer
- `weights`: trained weights from a file, for a base of one's own
- `base`: the base classifier, its training, and its form as a `torch.nn.Module`
"""
