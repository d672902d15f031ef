"""Image classifiers: vision transformers and convolutional networks of stages."""
