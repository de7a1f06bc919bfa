"""A ResNet in PyTorch, written apart from the package, whose layers have torchvision's names."""
import torch
from torch import nn

# On these shapes threads cost more than they bring, most of all beside other work.
torch.set_num_threads(1)


class Block(nn.Module):
  """A residual block with the stride on its first 3x3."""

  def __init__(self, channels, width, bottleneck, stride):
    super().__init__()
    sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
    out = width * (4 if bottleneck else 1)
    widths = [channels, *[width] * (len(sizes) - 1), out]
    for i, (size, step) in enumerate(sizes):
      self.add_module(f'conv{i + 1}', nn.Conv2d(widths[i], widths[i + 1], size, step, size // 2, bias=False))
      self.add_module(f'bn{i + 1}', nn.BatchNorm2d(widths[i + 1]))
    self.count, self.downsample = len(sizes), None
    if stride != 1 or channels != out:
      self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
      y = y if i == self.count else y.relu()
    return ((x if self.downsample is None else self.downsample(x)) + y).relu()


class ResNet(nn.Module):
  """Gives the pooled features."""

  def __init__(self, blocks, bottleneck, width=64, stem='imagenet'):
    super().__init__()
    size, stride = (7, 2) if stem == 'imagenet' else (3, 1)
    self.conv1 = nn.Conv2d(3, width, size, stride, size // 2, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.pool = nn.MaxPool2d(3, 2, 1) if stem == 'imagenet' else nn.Identity()
    channels = width
    for i, count in enumerate(blocks):
      stage = []
      for j in range(count):
        stage.append(Block(channels, width * 2**i, bottleneck, 2 if i and not j else 1))
        channels = width * 2**i * (4 if bottleneck else 1)
      self.add_module(f'layer{i + 1}', nn.Sequential(*stage))
    self.stages = len(blocks)

  def forward(self, x):
    x = self.pool(self.bn1(self.conv1(x)).relu())
    for i in range(1, self.stages + 1):
      x = getattr(self, f'layer{i}')(x)
    return x.mean((2, 3))
