"""Train a speaker recognizer: `python train.py fit --config configs/train/mini_natural.yaml`; see --help."""

from sec4sr_pl.cli import train

if __name__ == "__main__":
    train()
