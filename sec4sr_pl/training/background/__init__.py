"""Background models by expectation maximization: GMM, i-vector extractor, LDA and PLDA, from nothing."""

from sec4sr_pl.training.background.discriminant import fit_lda, fit_plda
from sec4sr_pl.training.background.extractor import fit_extractor
from sec4sr_pl.training.background.mixture import fit_gmm

__all__ = ["fit_extractor", "fit_gmm", "fit_lda", "fit_plda"]
