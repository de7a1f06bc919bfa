"""From data sets to batches: sampler, sources, decoding, views, and augmentation on the device."""
