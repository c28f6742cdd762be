"""How likely the scores are under prior variances of the kinds of cluster, and the variances that make them likeliest."""

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

CONSTANT_VARIANCE = 100.0  # of the constant, in units of the sample variance: wide enough to be flat


SHARE_BOUNDS = (1e-6, 1e2)  # of the variance that one kind of cluster explains, in the same units


SHARE_PRIOR = (0.1, 2.0)  # median and sd of the logarithm: weak, but few placements may not make a kind of cluster vanish for sure


def maximise_evidence(
    features: np.ndarray, y: np.ndarray, v: np.ndarray, groups: np.ndarray, kinds: int
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Explained variance of each kind, then the nugget [kinds + 1], and what is minimised: L-BFGS on logarithms with exact gradients.

    Evidence times SHARE_PRIOR: the evidence of some 64 placements alone puts variances at zero that are not, and intervals get too narrow.
    """
    blocks = [features[:, groups == kind] for kind in range(kinds)]
    widths = np.array([max(block.shape[1], 1) for block in blocks])
    if len(y) <= features.shape[1]:
        kernels = [block @ block.T / width for block, width in zip(blocks, widths, strict=True)]

        def evidence(shares: np.ndarray) -> tuple[float, np.ndarray]:
            return _evidence_dual(shares, kernels, y, v)
    else:

        def evidence(shares: np.ndarray) -> tuple[float, np.ndarray]:
            return _evidence_primal(shares, features, groups, widths, y, v)

    def objective(log_shares: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evidence(np.exp(log_shares))
        median, sd = SHARE_PRIOR
        away = (log_shares - np.log(median)) / sd
        return value + 0.5 * away @ away, gradient + away / sd

    start = np.log([0.5 / kinds] * kinds + [0.5])
    bounds = [tuple(np.log(SHARE_BOUNDS))] * (kinds + 1)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60, "ftol": 1e-7})
    return np.exp(found.x), float(found.fun)


def _evidence_dual(shares: np.ndarray, kernels: list[np.ndarray], y: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """-log N(y; 0, C) and its gradient in log shares, with C = c 11ᵀ + Σ share_k K_k + diag(v + nugget).

    Rasmussen & Williams 2006, equations 5.8 and 5.9.
    """
    covariance = np.full((len(y), len(y)), CONSTANT_VARIANCE)
    for share, kernel in zip(shares, kernels, strict=False):
        covariance += share * kernel
    covariance[np.diag_indices(len(y))] += v + shares[-1]
    root, failed = dpotrf(covariance, lower=1, clean=1)
    assert not failed, "the covariance has the nugget on its diagonal and is positive definite"
    alpha = solve_triangular(root, solve_triangular(root, y, lower=True), lower=True, trans="T")
    inverse = np.tril(dpotri(root, lower=1)[0])  # the other triangle follows by symmetry: count it twice, the diagonal once
    diagonal = inverse.diagonal()
    traces = [2 * np.vdot(inverse, kernel) - diagonal @ kernel.diagonal() for kernel in kernels] + [diagonal.sum()]
    squares = [alpha @ kernel @ alpha for kernel in kernels] + [alpha @ alpha]
    value = 0.5 * (y @ alpha) + np.log(root.diagonal()).sum()
    return value, 0.5 * shares * (np.array(traces) - np.array(squares))


def _evidence_primal(
    shares: np.ndarray, features: np.ndarray, groups: np.ndarray, widths: np.ndarray, y: np.ndarray, v: np.ndarray
) -> tuple[float, np.ndarray]:
    """The same number and gradient as ``_evidence_dual`` through the N × N precision (Woodbury): cheaper when P > N."""
    prior = np.concatenate([[CONSTANT_VARIANCE], shares[:-1] / widths])[groups + 1]
    weight = 1 / (v + shares[-1])
    weighted = features.T * weight
    gram = weighted @ features
    root = cholesky(gram + np.diag(1 / prior), lower=True)
    coefficients = solve_triangular(root, solve_triangular(root, weighted @ y, lower=True), lower=True, trans="T")
    alpha = weight * (y - features @ coefficients)  # C⁻¹ y
    half = solve_triangular(root, gram, lower=True)
    trace = gram.diagonal() - np.sum(half**2, axis=0)  # diag(Xᵀ C⁻¹ X)
    slope = (features.T @ alpha) ** 2
    by_kind = np.bincount(groups + 1, prior * (trace - slope), minlength=len(shares))[1:]
    leverage = np.sum(solve_triangular(root, features.T, lower=True) ** 2, axis=0)
    nugget = np.sum(weight - weight**2 * leverage) - alpha @ alpha
    value = 0.5 * (y @ alpha) + np.log(root.diagonal()).sum() + 0.5 * np.log(prior).sum() - 0.5 * np.log(weight).sum()
    return value, 0.5 * np.append(by_kind, shares[-1] * nugget)
