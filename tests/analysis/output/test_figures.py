import numpy as np
import pandas as pd
import pytest

from analysis.bands import bands_in, rows_of
from analysis.output import comparison_figures, run_figures, style
from analysis.stability import pareto

TOKENS = np.array([0, 4000, 40_000, 400_000, 4_000_000])


@pytest.fixture
def stability():
    """Three bands and the whole range."""
    frames = []
    for n, (lo, hi) in enumerate([(0.5, 1.5), (1.5, 2.5), (2.5, 4.0), (0.5, 4.0)]):
        ratio = 1 - (0.8 - 0.2 * n) * np.linspace(1, 0, 5)
        frames.append(pd.DataFrame({
            "run": "r", "step": np.arange(5), "tokens": TOKENS, "band_lo": lo, "band_hi": hi, "n_placements": 20 + n, "n_items": 16,
            "ratio": ratio, "ratio_lo": ratio - 0.1, "ratio_hi": ratio + 0.1, "regret": 1 - ratio, "regret_lo": 0.9 - ratio,
            "regret_hi": 1.1 - ratio, "regret_random": 0.5 + n,
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def texts(fig) -> list[str]:
    found = [text.get_text() for legend in fig.legends for text in [*legend.get_texts(), legend.get_title()]]
    for ax in fig.axes:
        found += [ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in [*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts])]
    return [text for text in found if text]


def legible(fig) -> None:
    """All text is at least 7 pt, inside the figure, and tick labels of an axis do not overlap."""
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    width, height = fig.get_size_inches() * fig.dpi
    assert width == pytest.approx(style.WIDTH * fig.dpi)
    for ax in fig.axes:
        assert ax.get_ylabel() or ax.get_xlabel()
        ticks = []
        for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
            lo, hi = sorted(axis.get_view_interval())
            seen = [t for t in axis.get_ticklabels() if t.get_text() and lo <= t.get_position()[side] <= hi]
            ticks += seen
            if not any(t.get_rotation() == 45 for t in seen):
                boxes = [t.get_window_extent(renderer) for t in seen]
                spans = sorted((b.intervaly if side else b.intervalx).tolist() for b in boxes)
                assert all(a[1] <= b[0] + 1 for a, b in zip(spans, spans[1:], strict=False)), [t.get_text() for t in seen]
        labels = [t for t in [*ax.texts, ax.xaxis.label, ax.yaxis.label] if t.get_text()] + ticks
        for text in labels:
            assert text.get_fontsize() >= 7
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


def test_bands_are_ordered_and_the_whole_range_is_known(stability):
    found = bands_in(stability)
    assert [(b.lo, b.hi, b.whole) for b in found] == [(0.5, 1.5, False), (1.5, 2.5, False), (2.5, 4.0, False), (0.5, 4.0, True)]
    assert not bands_in(stability[stability["band_lo"] == 1.5])[0].whole
    assert len(rows_of(found[0], stability)) == 5 and str(found[0]) == "0.5–1.5"


def test_stability_panel(stability):
    rows = rows_of(bands_in(stability)[0], stability)
    with style.figure(height=1.5) as (fig, (ax,)):
        run_figures.stability_panel(ax, rows, 0.9)
        legible(fig)
        assert {"0.9", "τ / noise ceiling", "training tokens"} <= set(texts(fig))
        filled = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
        assert len(filled) == 1 and filled[0].get_ydata() == pytest.approx(rows["ratio"].iloc[:-1])
        assert len(ax.collections) == 1  # its interval
        x = [ax.transData.transform((t, 0))[0] for t in TOKENS]
        assert x[0] >= ax.bbox.x0 and np.all(np.diff(x) > 10)  # step 0 has its place on the logarithmic axis
        lo, hi = ax.get_ylim()
        assert lo <= rows["ratio"].min() and hi >= rows["ratio"].max()


def test_the_end_itself_is_hollow(stability):
    rows = rows_of(bands_in(stability)[0], stability)
    for draw in (lambda ax: run_figures.stability_panel(ax, rows, 0.9), lambda ax: run_figures.regret_panel(ax, rows)):
        with style.figure(height=1.5) as (_, (ax,)):
            draw(ax)
            (hollow,) = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
            assert list(hollow.get_xdata()) == [TOKENS[-1]]
            dotted = [
                line for line in ax.lines if line.get_linestyle() == ":" and line.get_marker() == "None" and line.get_color() != "black"
            ]
            assert [list(line.get_xdata()) for line in dotted] == [list(TOKENS[-2:])]


def test_regret_panel_with_random_choice(stability):
    rows = rows_of(bands_in(stability)[1], stability)
    with style.figure(height=1.5) as (fig, (ax,)):
        run_figures.regret_panel(ax, rows)
        legible(fig)
        assert {"regret (nats/token)", "training tokens"} <= set(texts(fig))
        (chance,) = [line for line in ax.lines if line.get_label() == "random choice"]
        assert chance.get_ydata() == pytest.approx(rows["regret_random"])


def test_loss_curve():
    rng = np.random.default_rng(0)
    loss = 4 * np.exp(-np.arange(200) / 80) * np.exp(0.1 * rng.standard_normal(200))
    table = pd.DataFrame({"step": np.arange(200), "tokens": 1024 * np.arange(1, 201), "loss": loss})
    with style.figure(height=2.3) as (fig, (ax,)):
        run_figures.loss_curve(ax, table, np.array([0, 51_200, 204_800]))
        legible(fig)
        dots, line = ax.lines[:2]
        assert dots.get_ydata() == pytest.approx(loss) and len(line.get_xdata()) == 32
        of_first = table["loss"][:7]  # 200 steps in 32 groups: the first has 7
        assert line.get_ydata()[0] == pytest.approx(of_first.median())
        assert sorted(tick.get_xdata()[0] for tick in ax.lines[2:]) == [0, 51_200, 204_800]


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_tau_heatmap(steps):
    tau = 1 - np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))) / steps / 2
    with style.figure(height=2.6) as (fig, (ax,)):
        run_figures.tau_heatmap(ax, tau, np.geomspace(1000, 4e6, steps), 64)
        legible(fig)
        assert np.asarray(ax.images[0].get_array()) == pytest.approx(tau) and "Kendall's τ-b over 64 placements" in texts(fig)
        assert len(ax.texts) == (steps**2 if steps <= 12 else 0)


def test_pareto_drift(scores):
    members = pareto.frontier(scores)
    with style.figure(height=2.7) as (fig, (ax,)):
        run_figures.pareto_drift(ax, members, scores.cost, scores.quality[-1].mean(axis=1))
        legible(fig)
        assert {"0", "41k", "4.1M", "decode cost (FA-layer equivalents)", "quality (nats/token)"} <= set(texts(fig))
        steps = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
        assert len(steps) == 6 and all(np.all(np.diff(line.get_ydata()) > 0) for line in steps)


def test_frontier_kept(scores):
    table = pareto.drift(scores, np.random.default_rng(0), n_splits=10, n_shuffles=10)
    with style.figure(height=2.4) as (fig, (ax,)):
        run_figures.frontier_kept(ax, table)
        legible(fig)
        assert {"noise ceiling", "random choice", "40 placements, 24 items"} <= set(texts(fig))


@pytest.mark.parametrize(("n", "k"), [(9, 4), (2000, 10)])
def test_rank_trajectories(n, k):
    rng = np.random.default_rng(0)
    ranks = np.array([rng.permutation(n)[:k] + 1 for _ in range(5)] + [np.arange(k) + 1])
    names = ["".join(rng.choice(list("FSKG"), size=30)) for _ in range(k)]
    with style.figure(height=2.2) as (fig, (ax,)):
        run_figures.rank_trajectories(ax, ranks, names, np.append(TOKENS, 8e6), n)
        legible(fig)
        assert f"rank among {n}" in texts(fig)
        labels = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
        assert len(labels) == k and all(a.y1 <= b.y0 + 3 for a, b in zip(labels, labels[1:], strict=False))
        # each line ends at its label
        ends = [ax.transData.transform((5, p + 1))[1] for p in range(k)]
        middle = [(box.y0 + box.y1) / 2 for box in labels][::-1]
        assert ends == pytest.approx(middle, abs=3)


def test_ties_share_a_rank_and_have_labels_of_their_own():
    ranks = np.array([[3, 1, 1, 9], [1, 1, 1, 4]])
    with style.figure(height=2.2) as (fig, (ax,)):
        run_figures.rank_trajectories(ax, ranks, ["FF", "FS", "SF", "SS"], np.array([0, 1000]), 20, (ranks, ranks + 1))
        legible(fig)
        ends = [line.get_ydata()[-1] for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() != "None"]
        assert ends == [1, 1, 1, 4]
        assert [t.get_position()[1] if t.xyann is None else t.xy[1] for t in ax.texts] == [1, 2, 3, 4]
        assert len(ax.collections) == 4 and all(len(bars.get_segments()) == 2 for bars in ax.collections)  # an interval at every point


@pytest.mark.parametrize(("layers", "n", "letters"), [(5, 12, "FSKG"), (48, 40, "FSKG"), (4, 6, "FXYG")])
def test_frontier_layers(layers, n, letters):
    rng = np.random.default_rng(0)
    placements = ["".join(rng.choice(list(letters), size=layers)) for _ in range(n)]
    with style.figure(height=2.4) as (fig, (ax,)):
        run_figures.frontier_layers(ax, placements, np.sort(rng.uniform(1, 4, size=n)))
        legible(fig)
        image = ax.images[0].get_array()
        order = [c for c in "FSKG" if c in letters] + sorted(set(letters) - set("FSKG"))
        assert image.shape == (layers, n) and order[image[2, 3]] == placements[3][2]
        assert set(order) <= set(texts(fig)) and len(set(ax.images[0].cmap.colors)) == 4


def test_panels_share_one_legend(stability):
    frame = stability.assign(share_of_training=stability["tokens"] / TOKENS[-1])
    with style.figure(2, height=2.6) as (fig, axes):
        for ax, label in zip(axes, ("b", "a"), strict=True):
            comparison_figures.scales(ax, rows_of(bands_in(frame)[0], frame).assign(label=label), 0.9, ["a", "b"])
        assert len(fig.legends) == 1 and sorted(t.get_text() for t in fig.legends[0].get_texts()) == ["a", "b"]
        colours = {line.get_label(): line.get_color() for ax in axes for line in ax.lines}
        assert colours["a"] == style.BAND_COLOURS[0] and colours["b"] == style.BAND_COLOURS[1]  # whatever the panel


@pytest.mark.parametrize("axis", ["share_of_training", "tokens_per_parameter"])
def test_scales(stability, axis):
    frame = stability.assign(
        label=[f"tiny run, band {lo}" for lo in stability["band_lo"] + stability["band_hi"]],
        share_of_training=stability["tokens"] / TOKENS[-1],
        tokens_per_parameter=stability["tokens"] / 1e5,
    )
    with style.figure(height=2.6) as (fig, (ax,)):
        comparison_figures.scales(ax, frame, 0.9, frame["label"].drop_duplicates().tolist(), axis)
        legible(fig)
        assert set(frame["label"]) <= set(texts(fig)) and ("100%" in texts(fig)) == (axis == "share_of_training")


def test_same_numbers_same_bytes(tmp_path, stability):
    for name in ("a", "b"):
        with style.figure() as (fig, (ax,)):
            run_figures.stability_panel(ax, rows_of(bands_in(stability)[0], stability), 0.9)
            style.save(fig, tmp_path / name / "figure")
    for suffix in ("pdf", "png"):
        a, b = ((tmp_path / name / f"figure.{suffix}").read_bytes() for name in ("a", "b"))
        assert a == b and len(a) > 1000 and b"CreationDate" not in a
    assert len(list(tmp_path.rglob("*.tmp"))) == 0
