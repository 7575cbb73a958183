"""Fixtures shared by all tests: private cache and results folders, and the optional reference data."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

# before torch is imported, and for processes that tests start: with small tensors threads only wait
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from PIL import Image

from neuronym.models.weights import random_start
from tests.helpers.diffusion import scheduler, tokenizer

gc.set_threshold(50_000, 10, 10)  # rubbish of tests is little, and looking for it takes a tenth of the time
ROOT = Path(__file__).resolve().parents[1]


# files whose tests take seconds: `make test-fast` leaves them out
SLOW = set(
    """applications/test_edited applications/test_orders applications/test_spurious
    applications/test_surgery applications/test_visualise atlas/test_browser atlas/test_explorer
    atlas/test_jupyterlab
    atlas/test_site datasets/test_concepts datasets/test_probe datasets/test_tasks
    describe/test_crops describe/test_examples describe/test_naming describe/test_pipeline
    describe/test_selection describe/test_simulation second_order/test_heads second_order/test_pool
    second_order/test_map_head models/test_downloads test_inference
    describe/test_variants evaluation/test_cosy evaluation/test_formulas evaluation/test_linear
    evaluation/test_presence evaluation/test_sanity figures/test_as_written figures/test_cards
    figures/test_comparisons figures/test_describe figures/test_published figures/test_second_order
    figures/test_style microworld/test_captioner microworld/test_training models/test_asking
    models/test_captioners models/test_clips models/test_identity models/test_llms
    models/test_preprocess models/test_sentences models/test_targets models/test_transcripts
    models/test_walk notebooks/test_describe_and_dissect notebooks/test_evaluation
    notebooks/test_labelling notebooks/test_refusals notebooks/test_second_order notebooks/test_smoke
    published/test_values runs/test_checks runs/test_execute runs/test_kubernetes runs/test_sweep
    second_order/test_ablation
    second_order/test_adversarial second_order/test_effects second_order/test_heat
    sae/test_layers sae/test_measured sae/test_naming sae/test_training applications/test_running
    second_order/test_pursuit second_order/test_segmentation similarity/test_kernels test_activations
    test_cache test_dlbroden test_docs test_fake_device test_passes test_repository test_script test_shards
    trust/test_calibration trust/test_null trust/test_counterfactual
    trust/test_polysemy trust/test_quick""".split()
)


# folders whose files take longest: begun first, so that two processes end together
LONG = ("notebooks", "faults", "runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    for item in items:
        if item.path.relative_to(ROOT / "tests").with_suffix("").as_posix() in SLOW:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def private_folders(tmp_path, monkeypatch):
    """Keep every test away from the user's cache and results."""
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEURONYM_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos, published tables and golden outputs; tests that need it skip without it."""
    folder = Path(os.environ.get("NEURONYM_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(
            f"reference data not found at {folder}; set NEURONYM_SHARED to the folder that holds data/"
        )
    return folder


@pytest.fixture
def diffusers(monkeypatch):
    """A module named diffusers whose pipeline draws the noise it is given, tinted by the prompt; it logs its
    calls.
    """
    log = SimpleNamespace(
        loads=[], calls=[], devices=[], bars=[], seed=0, betas=1, words={"a": 0}, error=None, lost=0
    )
    log.objects, log.tells = lambda prompt, seed: False, True  # of its safety checker

    class Pipeline:
        def __init__(self, source):
            with random_start(log.seed):
                unet = torch.nn.Linear(3, 5)
            self.components = {
                "unet": unet,
                "scheduler": scheduler(log.betas, source),
                "safety_checker": None,
                "tokenizer": tokenizer(log.words),
                "feature_extractor": SimpleNamespace(size=7),
            }

        @property
        def scheduler(self):
            return self.components["scheduler"]

        @scheduler.setter
        def scheduler(self, other):
            self.components["scheduler"] = other

        def set_progress_bar_config(self, disable):
            log.bars.append(disable)

        def to(self, device):
            log.devices.append(device)
            return self

        def __call__(self, prompt, generator, output_type, height=6, width=7, **more):
            log.calls.append(
                {
                    "prompt": prompt,
                    "output_type": output_type,
                    "height": height,
                    "width": width,
                    **more,
                    "seeds": [g.initial_seed() for g in generator],
                    "grad": torch.is_grad_enabled(),
                }
            )
            noise = [torch.rand(height, width, 3, generator=g) for g in generator]
            images = [
                Image.fromarray((n * 200 + len(p)).to(torch.uint8).numpy()) for n, p in zip(noise, prompt)
            ]
            flags = [log.objects(p, g.initial_seed()) for p, g in zip(prompt, generator)]
            images = [Image.new("RGB", i.size) if flag else i for i, flag in zip(images, flags)]
            return SimpleNamespace(
                images=[i.convert("RGBA") for i in images[log.lost :]],
                nsfw_content_detected=flags if log.tells else None,
            )

    class AutoPipelineForText2Image:
        @staticmethod
        def from_pretrained(source, **options):
            log.loads.append((source, options))
            if log.error:
                raise log.error
            return Pipeline(source)

    class DPMSolverMultistepScheduler(SimpleNamespace):
        @classmethod
        def from_config(cls, config):
            return cls(config=config | {"solver_order": 2})

    module = ModuleType("diffusers")
    module.DPMSolverMultistepScheduler = DPMSolverMultistepScheduler
    module.AutoPipelineForText2Image, module.__version__ = AutoPipelineForText2Image, "0.1"
    monkeypatch.setitem(sys.modules, "diffusers", module)
    return log
