import pytest

# The whole chain at a size that takes seconds: 4^2 placements of a two-layer supernet.
SMALL = [
    "model={layers: 2, hidden: 32, ffn: 64, heads: 2, kv_heads: 1, head_dim: 16, vocab: 64, window: 8}",
    "teacher.steps=12", "teacher.batch=8",
    "data.train=48", "data.items=6", "data.length=24", "data.prompt=12",
    "distill.steps=8", "distill.batch=4", "distill.checkpoints=4", "distill.first_checkpoint=2", "distill.calibrate=8",
    "trainer.accelerator=cpu", "trainer.save_seconds=0", "device=cpu", "memory_gib=0.05",
]  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """Overrides that send every file of a small run into a temporary folder."""
    return [*SMALL, f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]
