"""Writes a folder for Transformers as ONNX: a program of its own, without TensorFlow.

  python -P conic_jax/export/onnx_process.py FOLDER OUT SIDE SIDES

SIDE is the side in pixels of the image that the model is traced with; SIDES is 'any', or 'one' where the
model takes no other. PyTorch imports Triton where it is installed, which ends a process that has imported
TensorFlow by a segmentation fault: both bring an LLVM. Nothing of this package is imported here.
"""
import sys

import torch
import transformers

_OPSET = 20


class Features(torch.nn.Module):
  """The pooled features alone."""

  def __init__(self, model: torch.nn.Module):
    super().__init__()
    self.model = model

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    return self.model(images).pooler_output.flatten(1)


def main(folder: str, out: str, side: str, sides: str) -> None:
  """Writes the file."""
  module = Features(transformers.AutoModel.from_pretrained(folder)).eval()
  free = {0: torch.export.Dim.AUTO}
  if sides == 'any':
    free |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
  torch.onnx.export(
    module, (torch.zeros(2, 3, int(side), int(side)),), out, dynamo=True, opset_version=_OPSET,
    input_names=['images'], output_names=['features'], dynamic_shapes=(free,), external_data=False,
    verbose=False)


if __name__ == '__main__':
  main(*sys.argv[1:])
