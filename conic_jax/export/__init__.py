"""The way out: an encoder as a file that PyTorch, Transformers or Detectron2 reads."""
