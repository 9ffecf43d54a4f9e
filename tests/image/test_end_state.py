"""The law of degraded data that unconditional cold samples start from: its moments, keys and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ornstein.files import InputError
from ornstein.image.end_state import EndState
from ornstein.noise import Noise
from ornstein.process.cold import GaussianBlur

F64 = torch.float64


def test_end_states_have_the_moments_of_the_data() -> None:
    rng = np.random.default_rng(0)
    modes = torch.from_numpy(rng.normal(size=(3, 32)))
    kind = torch.from_numpy(rng.integers(0, 2, 4000))
    z = torch.from_numpy(rng.normal(size=(4000, 3))) * torch.tensor([1.0, 0.1, 0.0005]) + kind[:, None] * torch.tensor(
        [4.0, 0, 0]
    )
    x = (z @ modes + 0.3).reshape(-1, 2, 4, 4)
    law = EndState((2, 4, 4), components=2, dimensions=3, noise_std=0.0)
    law.fit(x)
    drawn = law.sample(10_000, Noise(0)).double()
    error = (drawn.mean(0) - x.mean(0)).abs().max() / x.std()
    assert float(error) < 0.03
    truth, found = torch.cov(x.flatten(1).T), torch.cov(drawn.flatten(1).T)
    assert float((found - truth).norm() / truth.norm()) < 0.04
    # the weak directions as well, in their own scale, and the two modes of the strong one
    axes = torch.linalg.pinv(modes)
    ours, theirs = (drawn - 0.3).flatten(1) @ axes, (x - 0.3).flatten(1) @ axes
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.05)
    shape = ((ours[:, 0] - ours[:, 0].mean()) / ours[:, 0].std()).pow(4).mean()
    assert float(shape) == pytest.approx(
        float(((theirs[:, 0] - theirs[:, 0].mean()) / theirs[:, 0].std()).pow(4).mean()), rel=0.05
    )


def test_blurred_to_the_end_only_the_mean_of_a_channel_is_left_and_noise_breaks_it() -> None:
    x = Noise(0).uniform((300, 3, 8, 8)) * torch.tensor([1.0, 0.3, 2.0]).reshape(3, 1, 1) + Noise(1).normal((300, 3, 1, 1))
    blurred = GaussianBlur(60, 7, 5.0).degrade(x.double(), 60)
    assert float(blurred.std((2, 3)).max()) < 1e-6
    law = EndState((3, 8, 8), dimensions=5, noise_std=0.002)  # more than there are: the rest stays silent
    law.fit(blurred)
    drawn = law.sample(4000, Noise(2)).double()
    means, truth = drawn.mean((2, 3)), blurred.mean((2, 3))
    assert torch.allclose(means.mean(0), truth.mean(0), atol=0.06)
    assert torch.allclose(torch.cov(means.T), torch.cov(truth.T), atol=0.08)
    within = (drawn - means[:, :, None, None]).std()
    assert float(within) == pytest.approx(0.002, rel=0.03)


def test_end_states_are_keyed_by_sample_and_refuse_what_they_cannot() -> None:
    law = EndState((1, 4, 4), components=2, dimensions=2)
    with pytest.raises(InputError, match="knows no end states"):
        law.sample(2, Noise(0))
    law.fit(Noise(0).normal((50, 1, 4, 4)))
    whole = law.sample(9, Noise(3))
    assert torch.allclose(law.sample(4, Noise(3), first=5), whole[5:], atol=1e-6)
    assert not torch.allclose(law.sample(9, Noise(4)), whole, atol=0.1)
    law.fit(torch.full((5, 1, 4, 4), 0.3))  # all alike: there is no direction
    assert float((law.sample(20, Noise(5)) - 0.3).abs().max()) < 0.02
    with pytest.raises(ValueError, match="1 end states are too few"):
        law.fit(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="dimensions=17 from 1 to 16"):
        EndState((1, 4, 4), dimensions=17)
    with pytest.raises(ValueError, match="noise_std=-1"):
        EndState((1, 4, 4), noise_std=-1)
