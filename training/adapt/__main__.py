"""Command line of the recipe: a converted `arith` in, the same trained in its residual form out.

    fathom convert arith --residual ladder --layers 6-11 --out converted/
    python -m training.adapt converted/ --out adapted/

Of the standard checkpoint itself it makes the control: what the same steps do where nothing was converted.
"""

import argparse
from pathlib import Path

import torch

from models.errors import FathomError
from training.adapt.run import Adaptation, adapt


def main() -> None:
    """Parse the arguments, train, measure, write."""
    defaults = Adaptation()
    parser = argparse.ArgumentParser(prog="python -m training.adapt", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="directory that fathom convert wrote")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        adapt(options.checkpoint, options.out, Adaptation(options.steps, options.seed))
    except FathomError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
