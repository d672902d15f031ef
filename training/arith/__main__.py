"""Command line of the recipe: train, measure, write the checkpoint directory."""

import argparse
from pathlib import Path

import torch

from training.arith.recipe import Recipe, Stage
from training.arith.run import Run, work
from training.arith.workers import run


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m training.arith", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[9000, 11_000], help="last step of each stage")
    parser.add_argument("--decay", type=int, nargs="+", default=[4000, 4000], help="steps in which its rates fall to 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, sharing every batch")
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/arith"))
    parser.add_argument("--state", type=Path, help="file that keeps the state to resume from")
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    options = parser.parse_args()
    if options.resume and options.state is None:
        parser.error("--resume needs --state")
    torch.set_num_threads(1)
    if len(options.steps) != len(options.decay):
        parser.error("--steps and --decay need one number for each stage")
    stages = tuple(Stage(end, decay) for end, decay in zip(options.steps, options.decay, strict=True))
    recipe = Recipe(stages, seed=options.seed)
    run(work, options.workers, recipe, Run(options.out, options.state, options.resume))


if __name__ == "__main__":
    main()
