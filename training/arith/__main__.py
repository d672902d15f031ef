"""Command line of the recipe: train, measure, write the checkpoint directory."""

import argparse
from pathlib import Path

import torch

from training.arith.recipe import Recipe
from training.arith.run import Run, work
from training.arith.workers import run


def main() -> None:
    """Parse the arguments and train."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m training.arith", description=__doc__)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--decay", type=int, default=defaults.decay, help="last steps, in which the rates fall")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--residual", choices=("standard", "parallel", "ladder"), default=defaults.residual)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, sharing every batch")
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/arith"))
    parser.add_argument("--state", type=Path, help="file that keeps the state to resume from")
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    options = parser.parse_args()
    if options.resume and options.state is None:
        parser.error("--resume needs --state")
    torch.set_num_threads(1)
    recipe = Recipe(options.steps, options.decay, options.seed, residual=options.residual)
    run(work, options.workers, recipe, Run(options.out, options.state, options.resume))


if __name__ == "__main__":
    main()
