"""Which loggers a command asks for: by a name of ours, or ``MODULE:CLASS`` of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from harness.errors import HarnessError, NotInstalled, near_miss
from harness.loggers.contract import Logger, Place

OURS = {
    "tensorboard": "harness.loggers.tensorboard:TensorBoard",
    "wandb": "harness.loggers.wandb:WeightsAndBiases",
    "mlflow": "harness.loggers.mlflow:MLflow",
    "trackio": "harness.loggers.trackio:Trackio",
}
"""Where each is."""


def chosen_loggers(names: Sequence[str], place: Place) -> dict[str, Logger]:
    """Return loggers that are ready, by what names them in files and sentences.

    Args:
        names: Each once; as ``--log`` takes them.
        place: Where they keep things.

    Raises:
        HarnessError: there is no such logger, its package is missing, or it cannot be used as things are.
    """
    found: dict[str, Logger] = {}
    for name in names:
        kind = _kind(name)
        called = name if name in OURS else kind.__name__
        if called in found:
            raise HarnessError(f"--log {name}: another logger is called {called} already")
        try:
            found[called] = kind(place)
        except ModuleNotFoundError as error:
            if kind.extra is None:
                raise HarnessError(f"--log {name}: the package '{error.name}' is not installed") from error
            raise NotInstalled(
                f"--log {name} needs the package '{error.name}': pip install {kind.extra}, in a checkout pip install "
                f"'.[{kind.extra}]'"
            ) from error
        except HarnessError:
            raise
        except (Exception, SystemExit) as error:  # a library that cannot be imported or set up here
            said = next(iter(str(error).strip().splitlines()), "")
            raise HarnessError(
                f"--log {name} cannot be used: {type(error).__name__}{': ' * bool(said)}{said}"
            ) from error
    return found


def _kind(name: str) -> type[Logger]:
    """Return a logger's class.

    Raises:
        HarnessError: there is none.
    """
    module, colon, wanted = OURS.get(name, name).partition(":")
    if not (module and colon and wanted):
        raise HarnessError(
            f"--log {name}: there is no such logger{near_miss(name, OURS)}; one of your own is named MODULE:CLASS"
        )
    try:
        kind = getattr(importlib.import_module(module), wanted)
    except (ImportError, AttributeError, ValueError) as error:
        raise HarnessError(
            f"--log {name}: cannot be imported: {error}; the module has to be installed, or its folder in PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # what a stranger's module raises as it is imported
        said = next(iter(str(error).strip().splitlines()), "")
        raise HarnessError(
            f"--log {name}: cannot be imported: {type(error).__name__}{': ' * bool(said)}{said}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Logger)):
        raise HarnessError(f"--log {name}: is no subclass of harness.loggers.contract.Logger")
    return kind
