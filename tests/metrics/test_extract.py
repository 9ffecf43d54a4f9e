from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ornstein.files import InputError, write_tensors
from ornstein.metrics import (
    Classifier,
    Module,
    Pixels,
    accuracy,
    classifier_features,
    load_classifier,
    load_extractor,
    save_classifier,
    train_classifier,
    weights_hash,
)


def bars(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 8×8 images in 0 … 16 with a horizontal (0) or vertical (1) bar anywhere."""
    generator = torch.Generator().manual_seed(seed)
    images = 4 * torch.rand(n, 1, 8, 8, generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    for image, label, place in zip(images, labels, torch.randint(8, (n,), generator=generator), strict=True):
        (image[0] if label == 0 else image[0].T)[place] += 12
    return images, labels


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return train_classifier(*bars(600, 0), seed=0, epochs=4, batch=32)


def test_classifier_learns_and_has_the_declared_size(trained: Classifier) -> None:
    assert accuracy(trained, *bars(300, 1)) > 0.97
    assert 200_000 < sum(x.numel() for x in trained.parameters()) < 240_000
    assert classifier_features(trained)(bars(7, 2)[0]).shape == (7, 128)


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    images, labels = bars(64, 3)
    copy = images.clone()
    calls: list[tuple[int, int, float]] = []
    nets = [
        train_classifier(images, labels, seed=seed, epochs=1, progress=lambda *call: calls.append(call)) for seed in (0, 0, 1)
    ]
    first, again, other = (weights_hash(net) for net in nets)
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, copy)
    assert [call[:2] for call in calls] == [(1, 1)] * 3
    torch.random.set_rng_state(before)


def test_file_round_trip_keeps_features_range_and_name(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "bars.safetensors"
    save_classifier(path, trained)
    loaded, images = load_extractor(str(path)), bars(20, 4)[0]
    ours = classifier_features(trained, label="bars")
    assert torch.equal(loaded(images), ours(images))
    assert loaded.name == ours.name
    assert weights_hash(load_classifier(path)) == weights_hash(trained)


def test_features_belong_to_the_declared_range(trained: Classifier) -> None:
    images = bars(20, 4)[0]
    rescaled = Classifier(1, 2, 0.0, 1.0)
    rescaled.load_state_dict({**trained.state_dict(), "trunk.0.range": trained.trunk[0].range / 255})
    rescaled.eval()
    assert torch.allclose(classifier_features(rescaled)(images / 255), classifier_features(trained)(images), atol=1e-4)
    assert classifier_features(rescaled).name != classifier_features(trained).name


def test_module_runs_in_batches_without_gradients_and_hashes_its_weights() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    images = torch.arange(28.0).reshape(7, 1, 2, 2)
    extract = Module(net, "linear", lambda x: x / 10, batch=3)
    features = extract(images)
    assert torch.allclose(features, net(images / 10).detach(), atol=1e-6)
    assert not features.requires_grad
    name = extract.name
    with torch.no_grad():
        net[1].bias[0] += 1
    assert name.startswith("linear-")
    assert extract.name != name


def test_module_refuses_training_mode_and_leaves_it_as_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    with pytest.raises(InputError, match="eval"):
        Module(net, "dropout")(torch.ones(2, 1, 2, 2))
    assert net.training


def test_pixels_are_flattened_in_their_own_range() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    assert torch.equal(Pixels()(images), torch.arange(24.0).reshape(2, 12))
    assert load_extractor("pixels") == Pixels()
    with pytest.raises(InputError, match=r"\(N, C, H, W\)"):
        Pixels()(images[0])


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    write_tensors(foreign, {"weight": torch.ones(3)})
    (tmp_path / "cut.safetensors").write_bytes(foreign.read_bytes()[:20])
    for name in ("foreign.safetensors", "cut.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match=name):
            load_extractor(str(tmp_path / name))
    part = Classifier(1, 2, 0.0, 1.0).state_dict()
    del part["trunk.1.bias"]
    write_tensors(tmp_path / "part.safetensors", part)
    with pytest.raises(InputError, match=r"part\.safetensors"):
        load_classifier(tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="'inception'"):
        load_extractor("inception")
    assert foreign.exists()


def test_wrong_training_data_is_refused() -> None:
    images, labels = bars(8, 0)
    refused = [
        (images, labels[:4], "one per image"),
        (images, labels.float(), "integers"),
        (images, torch.zeros_like(labels), "two classes"),
        (images, labels - 1, "expected 0 to K-1"),
        (torch.ones_like(images), labels, "differ"),
        (images[0], labels, "expected"),
    ]
    for x, y, reason in refused:
        with pytest.raises(InputError, match=reason):
            train_classifier(x, y, seed=0)
    with pytest.raises(InputError, match="epochs=0"):
        train_classifier(images, labels, seed=0, epochs=0)
    assert len(refused) == 6
