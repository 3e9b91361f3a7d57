"""Every error a user can meet, each with its own type.

A message is one or more sentences: what was found, what was expected, what to do. The command line prints
the message and exits with code 2; it never shows a traceback for an `ImpartError`.
"""

import difflib
from collections.abc import Iterable


class ImpartError(Exception):
    """Base of all errors that are the request's or the surroundings' fault, not the program's."""


class ConfigError(ImpartError):
    """A setting has a wrong type or value, or two settings cannot go together."""


class UnknownNameError(ImpartError):
    """A name is not among those that exist; the message gives the nearest one."""


class CheckpointError(ImpartError):
    """A checkpoint folder is missing, is not safetensors, or its files do not hold together."""


class NoFolderError(CheckpointError):
    """A checkpoint's location is no folder."""


class IncompleteError(CheckpointError):
    """A checkpoint lacks tensors that its model needs; the message lists them."""


class UnreachableError(CheckpointError, ConnectionError):
    """A checkpoint's place does not answer, or not now: the same request may succeed later, and is tried again."""


class MismatchError(ImpartError):
    """Base and fine-tuned checkpoints do not fit each other; the message lists every mismatch."""


class InfeasibleBudgetError(ImpartError):
    """The requested ratio leaves too few bytes to keep anything; the message gives the highest possible."""


class TensorValueError(ImpartError):
    """A tensor holds NaN or infinity, or values that the format cannot carry; the message names it."""


class StoreError(ImpartError):
    """The artifact store cannot be read or written."""


class StoreUnreachableError(StoreError, ConnectionError):
    """The artifact store does not answer, or not now: the same request may succeed later, and is tried again."""


class StoreDeniedError(StoreError):
    """The artifact store refuses the credentials, or they do not allow what was asked."""


class StoreFullError(StoreError):
    """There is no space left where an artifact or a checkpoint was being written."""


class ArtifactNotFoundError(StoreError):
    """No artifact has this name or id."""


class CorruptArtifactError(StoreError):
    """A published file does not have the size or digest its manifest records; the message names the file."""


class NewerArtifactError(StoreError):
    """A whole artifact of a store was made by a newer impart, in a form that this one does not know."""


class WrongBaseError(ImpartError):
    """A delta is being applied to a base other than the one that it was made against."""


class OutputExistsError(ImpartError):
    """An output folder already holds files and must not be overwritten."""


class HubError(ImpartError):
    """A folder cannot be uploaded to the Hugging Face Hub."""


class DeviceError(ImpartError):
    """The requested device is not available on this machine."""


class ClusterError(ImpartError):
    """The cluster that a run is spread over does not answer, does not fit it, or gave its work up."""


class CalibrationError(ImpartError):
    """The calibration text cannot be read or does not fit the model, or the model cannot be calibrated."""


class EvaluationError(ImpartError):
    """An evaluation task cannot be run as requested."""


class ModelError(EvaluationError):
    """A model cannot be loaded to be measured, fails on a task's text, or gives what is not finite."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not known, with the nearest valid name and the whole list.

    Args:
        kind: what the name stands for, in a few words ("method", "lm-eval task").
        name: what the user wrote.
        known: the names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return UnknownNameError(f"Unknown {kind} {name!r}.{guess} Known: {listed or 'none'}.")
