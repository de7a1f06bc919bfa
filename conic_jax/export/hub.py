"""The last step of an export: a folder that goes to the Hugging Face hub."""
from pathlib import Path

from conic_jax.errors import UserError


def upload(folder: Path, repository: str) -> str:
  """Uploads a folder; a repository that is not there is made, and is private.

  Args:
    folder: what was written for Transformers.
    repository: 'NAME/REPOSITORY'.

  Returns:
    The address of the upload.

  Raises:
    UserError: if huggingface_hub is not installed, or the hub refuses or does not answer; the folder stays.
  """
  try:
    import huggingface_hub
  except ImportError:
    raise UserError("--upload needs huggingface_hub: pip install huggingface_hub. "
                    f'{folder} is written.') from None
  try:
    api = huggingface_hub.HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder))
  except Exception as error:  # Of the hub or of its HTTP client, which differs between its versions.
    raise UserError(f'--upload={repository}: the hub does not take it ({_first_line(error)}). {folder} is '
                    'written and can be uploaded later; without a login, run `hf auth login`.') from error


def _first_line(error: Exception) -> str:
  return str(error).strip().partition('\n')[0]
