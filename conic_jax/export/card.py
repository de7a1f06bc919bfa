"""The model card: encoder, data, training and results."""
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from conic_jax.errors import UserError
from conic_jax.export import names, targets
from conic_jax.export.families import of_network
from conic_jax.export.preprocessing import Preprocessing
from conic_jax.models import ConvNeXt, EncoderModule, ResNet, VisionTransformer
from conic_jax.run import claim
from conic_jax.views import IMAGENET_MEAN, IMAGENET_STD, usual_resize

_CARD = '''\
---
license: unknown
{library}tags:
- image-feature-extraction{tags}
{index}---
# {name}, {title}

| | |
| --- | --- |
{facts}

## Use

```python
{use}
```

## Figures

{figures}

## Licence

Not stated yet: whoever publishes these weights fills in `license` at the top, minding that of the data.

## Settings

{settings}
'''


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an encoder comes from.

  Attributes:
    title: title of the card, after the network's name.
    facts: known facts, by name.
    figures: evaluation results, by file and name.
    settings: settings of the training.
    labelled: whether labels were used; None if unknown.
    preprocessing: how an image becomes an input.
  """
  title: str
  facts: Mapping[str, str]
  figures: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  labelled: bool | None = None
  preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)


def of_run(run: Path, config: Mapping[str, Any]) -> Origin:
  """The origin of a run's encoder, from its folder and its config.json.

  The run may be a pretraining, or a fine-tuning or segmentation that trained an encoder further.

  Raises:
    UserError: if a results file cannot be read.
  """
  settings, figures, views = _settings(config), read_figures(run), config['views']
  data, images = settings['data'], figures.get(('summary', 'num_images'))
  mean, std = tuple(views.get('mean', IMAGENET_MEAN)), tuple(views.get('std', IMAGENET_STD))
  resize = config.get('eval', {}).get('resize') or usual_resize(views['size'])
  facts = {
    'data': ', '.join([data['name'] or 'unknown', *([data['dir']] if data.get('dir') else []),
                       f'split {data["train"]!r}', *([f'{images:,} images'] if images else [])]),
    'method': config['method'],
    'training': _training(config),
    'input': f'RGB in 0 … 1, less {mean}, over {std}; {views["size"]} × {views["size"]} pixels '
             'in pretraining'}
  labelled = 'started_from' in config
  how = 'trained further by' if labelled else 'pretrained with'
  return Origin(f'{how} {config["method"]}', facts, figures, settings, labelled,
                Preprocessing(views['size'], max(resize, views['size']), mean, std))


def _training(config: Mapping[str, Any]) -> str:
  """The card's line on how the encoder was trained."""
  version = f'conic_jax {config.get("versions", {}).get("conic_jax", "")}'.rstrip()
  known = {'seed': 'unknown', 'epochs': 'unknown', 'batch_size': 'unknown', **config}
  if 'started_from' in config:
    start = Path(config['started_from']).name
    return f'on labels, from the encoder {start}, seed {known["seed"]}; {version}'
  amount = f'{config["max_steps"]} steps' if config.get('max_steps') else f'{known["epochs"]} epochs'
  return f'without labels, {amount}, batch {known["batch_size"]}, seed {known["seed"]}; {version}'


def of_file(path: Path, size: int) -> Origin:
  """The origin of an encoder read from a file, for images of `size` pixels; data and method are unknown."""
  unknown = 'not told by the file: to be filled in'
  return Origin(f'from {path.name}', {
    'data': unknown, 'method': unknown, 'training': unknown,
    'input': f'RGB; the normalisation is not told by the file, and usually less {IMAGENET_MEAN}, over '
             f'{IMAGENET_STD} on the scale 0 … 1'}, preprocessing=Preprocessing(size, usual_resize(size)))


def described(network: EncoderModule) -> str:
  """An encoder in words."""
  if family := of_network(network):
    return family.described(network)
  if not isinstance(network, ResNet):
    return type(network).__name__
  return (f'blocks {", ".join(map(str, network.blocks))}, stem {network.stem!r}, width {network.width:g}, '
          f'output stride {network.output_stride}')


def _output(network: Any) -> str:
  last = {ResNet: ', the mean of the last map', VisionTransformer: ', the class token',
          ConvNeXt: ', the normalised mean of the last map'}.get(type(network), '')
  return f'{network.num_features} features{last}'


def _name(network: EncoderModule) -> str:
  """The common name of an encoder, such as 'resnet50'; without one, that of its class."""
  family, common = of_network(network), None
  if family:
    common = family.name(network)
  elif isinstance(network, ResNet):
    common = names.architecture(network.blocks, network.bottleneck)
  return common or type(network).__name__


def _timm_call(network: EncoderModule, side: int) -> str:
  """The call of timm that makes an encoder."""
  family = of_network(network)
  if family:
    return family.timm_call(network, side)
  return f"timm.create_model('{_name(network)}', num_classes=0)"


def text(target: str, network: EncoderModule, origin: Origin, out: Path) -> str:
  """The card in Markdown, with the fields that model hubs read.

  Args:
    target: the export target.
    network: the encoder.
    origin: where it comes from.
    out: file or folder of the weights.
  """
  facts = {**origin.facts, 'encoder': f'{described(network)}, without a head', 'output': _output(network)}
  figures = '\n'.join(f'| {file} | {figure} | {value:.6g} |'
                      for (file, figure), value in origin.figures.items())
  name, library = _name(network), targets.find(target).library
  use = targets.find(target).use.format(
    name=name, file=out.name, timm=_timm_call(network, origin.preprocessing.size),
    library=f"{'torchvision' if isinstance(network, ResNet) else 'timm'}'s {type(network).__name__}",
    depth=name.removeprefix('resnet'),
    channels=256 if getattr(network, 'bottleneck', False) else 64,
    mean255=[round(255 * value, 3) for value in origin.preprocessing.mean],
    std255=[round(255 * value, 3) for value in origin.preprocessing.std])
  return _CARD.format(
    name=name, title=origin.title, use=use, index=_model_index(f'{name}, {origin.title}', origin),
    library=f'library_name: {library}\npipeline_tag: image-feature-extraction\n' if library else '',
    tags='\n- self-supervised' if origin.labelled is False else '',
    facts='\n'.join(f'| {fact} | {value} |' for fact, value in facts.items()),
    figures=f'| file | figure | value |\n| --- | --- | --- |\n{figures}' if figures else 'There are none.',
    settings=f'```json\n{json.dumps(origin.settings, indent=2)}\n```' if origin.settings else 'Unknown.')


def _model_index(name: str, origin: Origin) -> str:
  """The accuracies as the lines of YAML that model hubs read; '' if there are none. JSON is YAML too."""
  accuracies = [(file, figure, value) for (file, figure), value in origin.figures.items()
                if re.fullmatch(r'(\w+_)?top[15]|miou|map', figure)]
  if not accuracies:
    return ''
  data = origin.settings.get('data', {})
  dataset = {'type': 'image-folder' if data.get('name') == 'folder' else str(data.get('name')),
             'name': str(data.get('dir') or data.get('name')), 'split': str(data.get('test') or 'none')}
  results = [{'task': {'type': 'image-classification', 'name': file}, 'dataset': dataset, 'metrics': [
                {'type': 'accuracy' if 'top' in figure else figure, 'name': figure, 'value': value}]}
             for file, figure, value in accuracies]
  return f'model-index:\n- {json.dumps({"name": name, "results": results})}\n'


def read_figures(run: Path) -> dict[tuple[str, str], float]:
  """The numbers of a run's summary and evaluations, by file and name; raises as `read_results`."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(read_results(run))
  return {(stem, '.'.join(parts)): value for (stem, *parts), value in flat.items()
          if type(value) in (int, float)}


def read_results(run: Path) -> dict[str, dict[str, Any]]:
  """The contents of a run's summary and evaluations, by the file's name.

  Raises:
    UserError: if a file is not a JSON object.
  """
  results = {}
  for path in sorted(run.glob('*.json')):
    if path.name in ('config.json', claim.MARKER):
      continue
    try:
      results[path.stem] = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f'{path} cannot be read ({error}): delete it, or evaluate again.') from error
    if not isinstance(results[path.stem], dict):
      raise UserError(f'{path} cannot be read (it has no names): delete it, or evaluate again.')
  return results


def public(value: Any) -> Any:
  """Settings or figures with every path or URL cut to its last part."""
  if isinstance(value, Mapping):
    return {name: public(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [public(part) for part in value]
  if isinstance(value, str) and (value.startswith(('/', '~')) or '://' in value):
    return Path(value).name
  return value


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """The settings to publish: without the run's folder, caches, and full data paths."""
  settings = public({name: value for name, value in config.items() if name != 'run'})
  settings['data'].pop('cache', None)
  if settings['data'].get('dir'):
    settings['data']['dir'] = Path(settings['data']['dir']).name
  return settings
