"""The published presets of the 15B supernet beside the roofline: their speed-ups as the model card gives them, and ours as predicted."""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.roofline import APRIEL_15B, DEVICES, SHARE, step

PRESETS = {
    "all-FA": ((48, 0, 0, 0), 1.0, 1.0),
    "26": ((12, 26, 6, 4), 2.85, 1.5),
    "Idealized-18": ((13, 32, 1, 2), 1.99, 1.1),
    "18": ((3, 25, 4, 16), 4.76, 2.2),
    "Idealized-6": ((0, 30, 5, 13), 6.2, 2.4),
    "13": ((0, 16, 13, 19), 6.9, 2.7),
    "10": ((0, 10, 5, 33), 10.69, 4.2),
}
"""Layers of F, S, K, G; measured throughput over all-FA's at 32k and at 16k (model card of SuperApriel-15B)."""


def published(device: str = "h100", share: float = SHARE) -> pd.DataFrame:
    """preset, context, card (measured by its authors), batch and roofline (predicted; the whole supernet in memory), alone_batch and alone
    (the placement's weights only), alike (all at all-FA's batch), over (roofline / card)."""
    rows = []
    for context, at in ((32768, 1), (16384, 2)):
        full = {whole: step(APRIEL_15B, "F" * 48, DEVICES[device], context, share, whole) for whole in (True, False)}
        for preset, its in PRESETS.items():
            placement = "".join(letter * count for letter, count in zip("FSKG", its[0], strict=True))
            beside, alone = (step(APRIEL_15B, placement, DEVICES[device], context, share, whole) for whole in (True, False))
            alike = step(APRIEL_15B, placement, DEVICES[device], context, batch=full[True].batch)
            rows.append({
                "preset": preset, "context": context, "card": its[at], "batch": beside.batch,
                "roofline": beside.tokens_per_second / full[True].tokens_per_second, "alone_batch": alone.batch,
                "alone": alone.tokens_per_second / full[False].tokens_per_second, "alike": full[True].seconds / alike.seconds,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    table["over"] = table["roofline"] / table["card"]
    return table


def misfit(table: pd.DataFrame) -> pd.DataFrame:
    """Per context, over the six presets without all-FA: rank correlation of card and roofline, root mean square of the log ratio, and the
    power law ``card = factor * roofline ** power`` of least squares with what it leaves (rms of the log)."""
    rows = []
    for context, part in table[table["preset"] != "all-FA"].groupby("context", sort=False):
        ours, theirs = np.log(part["roofline"]), np.log(part["card"])
        power, factor = np.polyfit(ours, theirs, 1)
        rows.append({
            "context": context, "spearman": spearmanr(ours, theirs).statistic, "rms_log": float(np.sqrt(np.mean((ours - theirs) ** 2))),
            "factor": float(np.exp(factor)), "power": float(power),
            "left": float(np.sqrt(np.mean((theirs - factor - power * ours) ** 2))),
        })  # fmt: skip
    return pd.DataFrame(rows)
