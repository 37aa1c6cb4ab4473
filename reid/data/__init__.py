"""From a folder on disk to batches: layouts, packed store, augmentation, samplers, loader."""
