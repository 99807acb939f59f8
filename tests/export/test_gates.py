"""The gates: parity with PyTorch, and a limited loss of accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed
from alexnet_export.gates import check_loss, check_parity, compare, paired_loss, smallest_gate_set

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(600, 10)).astype(np.float32)
LABELS = LOGITS.argmax(1)


def with_other_answers(count):
    """The logits with another best class on the first ``count`` images."""
    changed = LOGITS.copy()
    changed[np.arange(count), (LABELS[:count] + 1) % 10] = 100
    return changed


def test_equal_logits_pass_with_no_difference():
    found = compare(LOGITS, LOGITS.copy(), LABELS)
    assert (found.images, found.labelled, found.top1) == (600, 600, 1)
    assert (found.agreement, found.max_logit_difference) == (1, 0)
    check_parity(found)
    check_loss(found)


def test_a_logit_outside_the_tolerance_fails_parity():
    off = LOGITS.copy()
    off[300, 4] -= 2e-4 * np.ptp(LOGITS)
    with pytest.raises(GateFailed, match=r"a logit differs by 2\.0\de-04 of the range .* the limit is 1e-04"):
        check_parity(compare(LOGITS, off, LABELS))


def test_another_best_class_fails_parity_however_small_the_difference():
    tied = LOGITS.copy()
    tied[7, :2] = tied[7].max() + 1, tied[7].max() + 1 + 1e-6
    swapped = tied.copy()
    swapped[7, 0] += 2e-6
    with pytest.raises(GateFailed, match="1 of 600 images have another best class"):
        check_parity(compare(tied, swapped, LABELS))


def test_logits_that_are_not_finite_or_of_another_shape_fail():
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    with pytest.raises(GateFailed, match="1 logits are not finite"):
        compare(LOGITS, broken, LABELS)
    with pytest.raises(GateFailed, match=r"shape \[600, 9\], expected \[600, 10\]"):
        compare(LOGITS, LOGITS[:, :9], LABELS)


@pytest.mark.parametrize(
    ("lost", "won", "images", "low", "high"),
    [
        (0, 0, 1080, -0.18, 0.18),
        (1, 0, 1080, -0.16, 0.35),
        (2, 0, 1080, -0.13, 0.50),
        (3, 0, 1080, -0.09, 0.64),
        # By hand: (20 +- 1.96 sqrt(61 - 400 / 1002)) / 1002.
        (40, 20, 1000, 0.473, 3.519),
    ],
)
def test_the_interval_of_a_loss(lost, won, images, low, high):
    found = paired_loss(lost=lost, won=won, images=images)
    assert found.estimate == pytest.approx(100 * (lost - won) / images)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_the_interval_covers_the_true_loss_with_95_percent_probability():
    random, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        lost, won, _same = random.multinomial(1000, [0.006, 0.003, 0.991])
        found = paired_loss(lost=int(lost), won=int(won), images=1000)
        covered += found.low <= 0.3 <= found.high
    assert 0.93 <= covered / 2000 <= 0.99


def test_a_loss_whose_interval_exceeds_the_budget_fails():
    expected = r"top-1 loss \+0\.17 points against fp32, .* to 0\.6\d on 600 images; the limit is 0\.5"
    with pytest.raises(GateFailed, match=expected):
        check_loss(compare(LOGITS, with_other_answers(1), LABELS))
    assert compare(with_other_answers(50), LOGITS, LABELS).loss_points.high < 0, "a gain is a negative loss"


def test_without_labels_another_best_class_counts_as_a_loss():
    found = compare(LOGITS, with_other_answers(6), np.full(600, -1))
    assert found.top1 is None
    assert found.loss_points.estimate == pytest.approx(1.0)
    with pytest.raises(GateFailed, match="no image has a label of this network"):
        check_loss(found)


def test_only_labelled_images_count_for_the_loss():
    labels = LABELS.copy()
    labels[:100] = -1
    found = compare(LOGITS, with_other_answers(100), labels)
    assert (found.labelled, found.loss_points.estimate, found.top1) == (500, 0, 1)
    assert found.agreement == pytest.approx(5 / 6)


def test_with_fewer_images_than_the_smallest_gate_set_no_model_can_pass():
    needed = smallest_gate_set()
    assert paired_loss(lost=0, won=0, images=needed).high <= 0.5
    assert paired_loss(lost=0, won=0, images=needed - 2).high > 0.5
    with pytest.raises(BadInput, match=f"100 images are too few to validate .* 0.5 points, {needed} are required"):
        check_loss(compare(LOGITS[:100], LOGITS[:100], LABELS[:100]))
