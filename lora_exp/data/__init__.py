"""Images and their classes: read from what their sources have, and prepared in one file that all runs read.

Each reader returns `raw.RawData` and refuses what can't be used in one line. Libraries are imported when they are used.

- `prepared`: the prepared file of a data set, made by the reader of its source
- `header`: what such a file says of itself
- `raw`: what readers return, and how pictures are wanted
- `torchvision_sets`: MNIST and its kin, CIFAR and SVHN, from the files that their authors publish
- `embedded`: the files of MNIST that ship with the package, in `mnist/`
- `download`: files from where their authors publish them
- `idx`: the format of MNIST's files
- `cifar`: the format of CIFAR's binary version
- `svhn`: the format of SVHN's files
- `digits`: the small digits of scikit-learn
- `known`: such sets with other classes, sizes and channels
- `folder`: a folder of pictures for each class
- `npz`: the files of MedMNIST and Keras
- `parquet`: the files of Hugging Face
- `parquet_columns`: which of their columns hold images and labels
- `classes`: the names of classes, and what labels have to hold
- `pictures`: one picture, from the bytes of a file to uint8
- `decoding`: many pictures, with all cores
- `arrays`: images that come as arrays
- `memory`: whether a data set fits into memory
- `source`: whether the files of a source have changed
"""
