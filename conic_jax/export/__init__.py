"""Export of an encoder to a file that PyTorch, Transformers or Detectron2 reads, and import."""
