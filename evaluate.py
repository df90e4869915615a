"""Measure the robustness of a checkpoint: `python evaluate.py --config configs/evaluate/mini.yaml`; see --help."""

from sec4sr_pl.evaluation import main

if __name__ == "__main__":
    main()
