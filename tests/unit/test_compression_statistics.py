"""The oracles are torch's own inverse and products of all rows at once, in float64."""

import pytest
import torch

from paramscope.compression.inverse_factor import TILE, inverse_factor_, mirror_
from paramscope.compression.statistics import SecondMoments, Squares
from paramscope.errors import RequestError

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64, condition numbers up to 1e4


def rows_of(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return rows @ mixing + 0.3 * rows


def moments(rows, dtype=torch.float64):
    statistic = SecondMoments(rows.shape[1], CPU, dtype)
    for part in rows.split(50):
        statistic.add(part)
    return statistic


@pytest.mark.parametrize("d", [1, 7, TILE, 2 * TILE + 45])
def test_the_factor_in_place_is_the_inverses_cholesky_factor(d):
    rows = rows_of(2 * d, d)
    H = rows.T @ rows
    H.diagonal().add_(0.01 * H.diagonal().mean())
    expected = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    work = H.clone()
    assert inverse_factor_(work)
    torch.testing.assert_close(work.triu(), expected, **EXACT)
    assert torch.equal(work.tril(-1), H.tril(-1))
    mirror_(work)
    assert torch.equal(work.tril(-1), work.triu(1).T)


@pytest.mark.parametrize("d", [6, TILE + 9])
def test_moments_and_energies_are_those_of_all_rows(d):
    rows = rows_of(170, d)
    statistic, squares = moments(rows), Squares(d, CPU, torch.float64)
    squares.add(rows[:100])
    squares.add(rows[100:])
    torch.testing.assert_close(squares.squares, rows.square().sum(0), **EXACT)
    weight = torch.randn(5, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    energy = float((weight @ rows.T).square().sum())
    for _ in range(2):  # before the factor takes the upper triangle, and after
        torch.testing.assert_close(statistic.squares, rows.square().sum(0), **EXACT)
        torch.testing.assert_close(statistic.full(), rows.T @ rows, **EXACT)
        assert statistic.energy(weight) == pytest.approx(energy, rel=1e-9)
        statistic.factor(0.01)


def test_damping_is_a_share_of_the_mean_of_what_is_alive():
    rows = rows_of(90, 12)
    rows[:, [3, 8]] = 0
    U, share = moments(rows).factor(0.05)
    H = rows.T @ rows
    mean = H.diagonal()[H.diagonal() > 0].mean()
    H[3, 3] = H[8, 8] = mean
    H.diagonal().add_(0.05 * mean)
    torch.testing.assert_close(U.triu().T @ U.triu(), torch.linalg.inv(H), **EXACT)
    assert share == 0.05


@pytest.mark.parametrize("n", [0, 1, 5])
def test_fewer_rows_than_columns_and_all_dead_columns_have_a_factor(n):
    U, share = moments(rows_of(n, 40), torch.float32).factor(0.01)
    assert U.isfinite().all()
    assert (U.diagonal() > 0).all()
    assert share == 0.01


def test_a_failed_factorisation_takes_ten_times_the_damping_and_says_so():
    statistic = moments(rows_of(60, 10))
    H = torch.eye(10, dtype=torch.float64)
    H[0, 1] = H[1, 0] = 1.5  # an eigenvalue of −.5, and a diagonal of 1: .01 and .1 fail, not 1
    statistic.matrix.copy_(H)
    with pytest.warns(RuntimeWarning, match="not positive definite at damping") as told:
        U, share = statistic.factor(0.01)
    assert share == 1
    assert len(told) == 2
    damped = H + torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(U.triu().T @ U.triu(), torch.linalg.inv(damped), **EXACT)


def test_what_no_damping_mends_is_refused():
    statistic = moments(rows_of(60, 10))
    statistic.matrix[5, 2] = float("nan")
    with (
        pytest.warns(RuntimeWarning, match="trying"),
        pytest.raises(RequestError, match="no Cholesky factor at any damping"),
    ):
        statistic.factor(0.01)
