"""MoCo's step in PyTorch, written apart from the package: a small ResNet, a queue, CO2's term.

As the public code does, the average of the key encoder is taken at the start of a step, and the keys are
really shuffled, normalised in consecutive groups, and put back in order.
"""
import copy

import numpy as np
import torch
import torch.nn.functional as F

DTYPE = torch.float64
# On these shapes threads cost more than they bring, most of all beside other work.
torch.set_num_threads(1)


def to_torch(tree):
  """Arrays of nested dicts as float64 tensors, kernels as PyTorch has them."""
  if isinstance(tree, dict):
    return {name: to_torch(value) for name, value in tree.items()}
  array = np.asarray(tree, np.float64)
  array = {4: lambda a: a.transpose(3, 2, 0, 1), 2: np.transpose}.get(array.ndim, lambda a: a)(array)
  return torch.tensor(np.ascontiguousarray(array), dtype=DTYPE)


def leaves(tree, path=()):
  """(path, tensor) of every leaf."""
  if not isinstance(tree, dict):
    return [(path, tree)]
  return [leaf for name in sorted(tree) for leaf in leaves(tree[name], (*path, name))]


class Encoder:
  """A ResNet of the small stem and one basic block, and a head of two linear layers."""

  def __init__(self, params, stats, groups):
    self.params, self.stats, self.groups = params, stats, groups

  def __call__(self, x):
    params, stats = self.params['encoder'], self.stats['encoder']
    x = F.conv2d(x, params['stem']['conv']['kernel'], padding=1)
    x = F.relu(self.norm(x, params['stem']['norm'], stats['stem']['norm']))
    block, own = params['stage1']['block0'], stats['stage1']['block0']
    y = F.relu(self.norm(F.conv2d(x, block['conv1']['kernel'], padding=1), block['norm1'], own['norm1']))
    y = self.norm(F.conv2d(y, block['conv2']['kernel'], padding=1), block['norm2'], own['norm2'])
    x, head = F.relu(x + y).mean((2, 3)), self.params['head']
    x = F.relu(F.linear(x, head['linear1']['kernel'], head['linear1']['bias']))
    return F.normalize(F.linear(x, head['linear2']['kernel'], head['linear2']['bias']))

  def norm(self, x, affine, running):
    """Batch norm of each consecutive group; the running statistics take the mean over the groups."""
    outputs, means, variances = [], [], []
    for part in x.chunk(self.groups):
      mean, var = torch.zeros(x.shape[1], dtype=DTYPE), torch.ones(x.shape[1], dtype=DTYPE)
      outputs.append(F.batch_norm(part, mean, var, affine['scale'], affine['bias'], True, momentum=1.0))
      means.append(mean)
      variances.append(var)
    running['mean'] = 0.9 * running['mean'] + 0.1 * torch.stack(means).mean(0)
    running['var'] = 0.9 * running['var'] + 0.1 * torch.stack(variances).mean(0)
    return torch.cat(outputs)


class MoCo:
  """The training state and its step."""

  def __init__(self, params, stats, queue, *, groups, temperature, momentum, lr, sgd_momentum, weight_decay,
               alpha=0.0, consistency_temperature=1.0):
    self.query = Encoder(to_torch(params), to_torch(stats), groups)
    self.key = copy.deepcopy(self.query)
    self.queue, self.pointer = torch.tensor(queue, dtype=DTYPE), 0
    self.parameters = [leaf.requires_grad_() for _, leaf in leaves(self.query.params)]
    self.optimizer = torch.optim.SGD(self.parameters, lr, momentum=sgd_momentum, weight_decay=weight_decay)
    self.temperature, self.momentum = temperature, momentum
    self.alpha, self.consistency_temperature = alpha, consistency_temperature

  @torch.no_grad()
  def average(self):
    for old, new in zip(leaves(self.key.params), leaves(self.query.params), strict=True):
      old[1].mul_(self.momentum).add_(new[1], alpha=1 - self.momentum)

  def step(self, query_images, key_images, order):
    """Takes a step with the keys' batch shuffled into this order, and gives its loss."""
    queries = self.query(query_images)
    with torch.no_grad():
      self.average()
      keys = self.key(key_images[order])[torch.argsort(order)]
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.T], 1) / self.temperature
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    if self.alpha:
      p, q = (F.log_softmax(vectors @ self.queue.T / self.consistency_temperature, 1)
              for vectors in (keys, queries))
      divergence = lambda a, b: F.kl_div(b, a, reduction='batchmean', log_target=True)
      loss = loss + self.alpha * (divergence(p, q) + divergence(q, p)) / 2
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    places = (self.pointer + torch.arange(len(keys))) % len(self.queue)
    self.queue[places], self.pointer = keys, (self.pointer + len(keys)) % len(self.queue)
    return float(loss.detach())
