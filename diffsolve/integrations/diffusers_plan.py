"""The calls of a run inside a pipeline: when they are made, what the network is told, and what is left of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import described, integer, required
from diffsolve.execute.plan import plan
from diffsolve.integrations.diffusers_meaning import Counted
from diffsolve.models import Model
from diffsolve.paths import EDM, CondOT, Path, Rectified
from diffsolve.solvers import DDIM, Ancestral, FlowMap, Multistep, Solver
from diffsolve.tableau import Tableau
from diffsolve.tableau.ends import TINY

__all__ = ["HostRows", "Plan", "host_rows", "planned", "times_of"]


@dataclass(frozen=True)
class HostRows:
    """The nodes of a host's schedule on the path's clock, the data end last, and what it tells at each but the last."""

    times: np.ndarray
    told: np.ndarray
    dtype: torch.dtype
    """That of the host's timesteps."""


@dataclass(frozen=True)
class Plan:
    """A run's calls in order. A call is a row; some rows stand at nodes, where a step begins."""

    model: Model
    method: Solver
    guidance: float
    times: np.ndarray
    tableau: Tableau
    timesteps: Tensor
    """(N,): what the pipeline tells the network, in the host's dtype where that holds it."""
    sigmas: Tensor
    """(N + 1,): the host's noise levels at the calls, and 0."""
    told: np.ndarray
    """(N,): `timesteps` on the CPU."""

    @property
    def clock(self) -> np.ndarray:
        """(N,): the path's times of the calls."""
        return self.tableau.calls[:, 0]

    def node(self, row: int) -> int:
        """The grid node of a row, or -1 between nodes."""
        return int(self.tableau.node[row - 1]) if row else 0

    def rows(self, timestep: float | Tensor) -> list[int]:
        """The rows that a timestep may mean, those at nodes first; none if it lies between them.

        A piece of `timesteps` itself tells its row exactly, without waiting for a device.
        """
        if isinstance(timestep, Tensor):
            own = self.timesteps
            mine = timestep.dtype == own.dtype and timestep.device == own.device and timestep.numel() > 0
            if mine and timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr():
                return [int(timestep.storage_offset()) - int(own.storage_offset())]
        value = value_of(timestep)
        found: list[int] = np.flatnonzero(np.abs(self.told - value) <= 1e-6 * max(1.0, abs(value))).tolist()
        return sorted(found, key=lambda row: self.node(row) < 0)

    def nearest(self, timestep: float | Tensor) -> list[int]:
        """The rows whose timestep is the nearest."""
        far = np.abs(self.told - value_of(timestep))
        return np.flatnonzero(far == far.min()).tolist()

    def time(self, timestep: float | Tensor) -> float:
        """The path's time of a timestep: that of its row, or by the network's clock.

        Raises:
            ValueError: if it is not on the clock, or at the data.
        """
        rows = self.rows(timestep)
        if rows:
            return float(self.clock[rows[0]])
        value, path = value_of(timestep), self.model.path
        try:
            time = float(_inverse(self.model, value))
        except ValueError:  # noisier, or less so, than the path
            time = np.nan
        if path.within(time) and float(path.rho(time)) > TINY:
            return time
        low, high = sorted((float(self.told.min()), float(self.told.max())))
        raise ValueError(f"timestep must be on the network's clock, as {low:g} to {high:g} are, got {value:g}")

    def rest(self, row: int | None, time: float) -> tuple[list[Tableau], list[bool]]:
        """The tableaux of a run from a row, or from a time between rows, and which of the calls ahead they take.

        A pipeline slices `timesteps`, and so decides how many calls are made and what each is told. The rest of the run
        uses those of them that stand where it has a call, and lets the others pass. A method whose first steps need
        calls of their own begins without them, and from between two nodes a first-order step leads to the next.

        Raises:
            ValueError: if the calls ahead are not those that the solver needs.
        """
        if row == 0:
            return [self.tableau], [True] * len(self.clock)
        sign = np.sign(self.times[-1] - self.times[0])
        after = self.times[sign * (self.times - time) > 1e-9 * max(1.0, abs(time))]
        if row is None:
            beyond = np.flatnonzero(sign * (self.clock - time) > 0)
            ahead = np.array([time, *(self.clock[beyond[0] :] if len(beyond) else [])])
        else:
            ahead = self.clock[row:]
        variants = [self.method]
        if isinstance(self.method, Multistep):
            if isinstance(self.method.points, tuple):
                variants = [replace(self.method, points=self.method.points[-len(after) :])]
            if self.method.start:
                variants.append(replace(self.method, start=None, ramp=()))
        parts_of: list[list[tuple[Solver, np.ndarray]]] = []
        if len(after):  # else it would begin on the data
            first = (DDIM(), np.array([time, after[0]]))
            parts_of = [[(method, np.array([time, *after]))] for method in variants]
            parts_of += [[first, *([(method, after)] if len(after) > 1 else [])] for method in variants]
        for parts in parts_of:
            tableaux = [plan(self.model, method, grid=grid, guidance=self.guidance) for method, grid in parts]
            takes = _matched(np.concatenate([tableau.calls[:, 0] for tableau in tableaux]), ahead)
            if takes is not None:
                return tableaux, takes
        raise ValueError(
            f"begin_index must be a call from which {self.method} can go on with the calls after it, got {row}"
        )

    def with_eta(self, eta: float) -> Plan:
        """The plan with noise of this eta, that of DDIM, where the solver has none of its own.

        Raises:
            ValueError: if the solver has no eta.
        """
        own = self.method
        if isinstance(own, FlowMap):  # TCD's eta is that share
            anew = replace(own, gamma=float(eta))
            return replace(self, method=anew, tableau=plan(self.model, anew, grid=self.times))
        required(isinstance(own, DDIM | Ancestral), "eta", eta, f"0 for a solver without that option, as {own}")
        assert isinstance(own, DDIM | Ancestral)
        if isinstance(own, Ancestral) or own.eta:
            return self
        method = replace(own, eta=float(eta))
        tableau = plan(self.model, method, grid=self.times, guidance=self.guidance)
        return replace(self, method=method, tableau=tableau)


def value_of(timestep: float | Tensor) -> float:
    """A timestep as a number; of a batch of equal ones, the first."""
    if isinstance(timestep, Tensor):
        required(timestep.numel() > 0, "timestep", timestep, "a number")
        return float(timestep.reshape(-1)[0])
    return float(timestep)


def _matched(wanted: np.ndarray, ahead: np.ndarray) -> list[bool] | None:
    """Which of the calls ahead are the wanted ones, in their order; None if some are not there."""
    takes, k = [], 0
    for time in ahead:
        hit = k < len(wanted) and abs(time - wanted[k]) <= 1e-6 * abs(wanted[k]) + 1e-9
        takes.append(bool(hit))
        k += hit
    return takes if k == len(wanted) else None


def _inverse(model: Model, network_time: float | Tensor) -> Tensor:
    """The path's times at these values of the network's clock."""
    value = torch.as_tensor(network_time, dtype=torch.float64, device="cpu")
    if model.clock == "c_noise":
        return model.path.time(-4 * value)
    if model.clock == "t":
        return value
    return value / (model.clock.count if isinstance(model.clock, Counted) else 1000.0)


def times_of(model: Model, plan: Plan | None, timesteps: float | Tensor) -> Tensor:
    """The path's times (B,) of timesteps: a planned call's own, which a host may tell rounded; else the clock's."""
    values = (timesteps if isinstance(timesteps, Tensor) else torch.tensor(timesteps, device="cpu")).reshape(-1)
    if plan is None:
        return _inverse(model, values.cpu())
    if len(values) == 1:
        return torch.tensor([plan.time(timesteps)], dtype=torch.float64, device="cpu")
    return torch.tensor([plan.time(float(value)) for value in values.cpu()], dtype=torch.float64, device="cpu")


def host_rows(host: Any, path: Path, steps: int | None, given: Mapping[str, Any]) -> HostRows:
    """What a host schedules for a number of steps, or for a pipeline's own timesteps or sigmas.

    A node is kept once, and the last is the data, whatever the host's last sigma; but TCD ends at row 0.

    Raises:
        ValueError: if the host does not take an argument, or what it schedules is no schedule.
    """
    theirs = copy.copy(host)  # which another thread may use
    if type(host).__name__ == "PNDMScheduler":  # the same spacing without repeated calls
        from diffusers import DDIMScheduler

        theirs = DDIMScheduler.from_config(host.config)  # type: ignore[no-untyped-call]
    accepted = inspect.signature(theirs.set_timesteps).parameters
    for name in given.keys() - accepted.keys():
        kind = type(host).__name__
        raise ValueError(f"{name}={described(given[name])} cannot be given with {kind}, which does not take it")
    arrays = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in given.items()}
    listed = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items() if name != "mu"}
    for name, values in listed.items():
        good = values.ndim == 1 and len(values) > 0 and bool(np.isfinite(values).all())
        required(good, name, given[name], "a list of finite numbers")
    ramp = type(host).__name__.startswith("EDM")  # whose sigmas are where they stand on its ramp, from 0 to 1
    own = np.ones(1) if ramp else listed.get("sigmas", np.ones(1))
    ends = len(own) > 1 and own[-1] == 0
    _positive(own[:-1] if ends else own)
    if steps is not None:
        given = {**given, "num_inference_steps": integer("num_inference_steps", steps, 1)}
    else:
        required(bool(listed), "num_inference_steps", steps, "an integer >= 1 where no timesteps or sigmas are given")
    taken = {name: torch.tensor(values) if ramp else _as_taken(name, values) for name, values in listed.items()}
    arguments = {**given, **taken}
    with np.errstate(all="ignore"), torch.device("cpu"):  # whatever torch's default device is
        theirs.set_timesteps(**arguments)
    told = theirs.timesteps.cpu().double().numpy()
    if ends and len(told) == len(own):  # this host adds the end itself
        _positive(own)
    if getattr(theirs, "sigmas", None) is None:
        times = told
    else:
        sigmas = theirs.sigmas.cpu().double().numpy()[: len(told)]
        required(bool(np.isfinite(sigmas).all()), "sigmas", sigmas.tolist(), f"finite, as {type(host).__name__} has")
        times = _times_at(path, sigmas)
    # Methods of two calls name each node twice, and tell its own time at the second.
    last = np.append(times[1:] != times[:-1], True) & (times != path.t_data)
    end = path.t_last if type(host).__name__ == "TCDScheduler" else path.t_data  # which ends at row 0
    return HostRows(np.append(times[last], end), told[last], theirs.timesteps.dtype)


def _positive(sigmas: np.ndarray) -> None:
    required(bool((sigmas > 0).all()), "sigmas", sigmas.tolist(), "positive, as the run ends on the data by itself")


def _as_taken(name: str, values: np.ndarray) -> Any:
    """Some hosts compute with what they get, so they get an array; timesteps of tables are whole numbers."""
    return values.astype(np.int64).tolist() if name == "timesteps" and (values % 1 == 0).all() else values


def _times_at(path: Path, sigmas: np.ndarray) -> np.ndarray:
    """The path's times at a host's sigmas, which are float32: the first may lie beyond the path by rounding."""
    if isinstance(path, EDM | Rectified | CondOT):
        clipped: np.ndarray = np.clip(sigmas, 0.0, max(path.t_noise, path.t_data))
        return clipped
    with np.errstate(divide="ignore"):
        times = path.time(np.maximum(-np.log(sigmas), float(path.lam(path.t_noise)))).numpy()
    row = times.round()
    near: np.ndarray = np.abs(times - row) < 1e-3 if path.integer else np.zeros(len(times), bool)
    return np.where(near, row, times)


def planned(
    model: Model,
    method: Solver,
    grid: Any,
    rows: HostRows | None,
    *,
    steps: int | None,
    guidance: float,
    dtype: torch.dtype,
    device: str | torch.device | None,
) -> Plan:
    """The plan of a run on the nodes of a host, or on a grid.

    Raises:
        ValueError: if the solver adds noise before its first call.
    """
    count = len(rows.times) - 1 if rows is not None else steps
    lowered = getattr(method, "lower_final", False)
    if isinstance(method, Multistep) and not isinstance(lowered, bool) and count is not None:
        # Decided by the length of the whole run, as the hosts do, also where a pipeline makes the end of it.
        method = replace(method, lower_final=count < lowered)
    if rows is None:
        tableau = plan(model, method, grid=grid, steps=steps, guidance=guidance)
    else:
        tableau = plan(model, method, grid=rows.times, guidance=guidance)
    if (tableau.entry != [[1, 0], [1, 0]]).any():
        raise ValueError(f"solver must add no noise before its first call, got {method}")
    own_scales = "without scales of guidance of its own: the pipeline guides"
    required("guides" not in tableau.unusual, "solver", tableau.solver, own_scales)
    clock = tableau.calls[:, 0]
    told = model.network_time(torch.from_numpy(tableau.told.copy())).cpu().double().numpy().copy()
    if rows is not None:
        told = _told(model, rows, clock, told)
    whole = bool((told % 1 == 0).all())
    if not dtype.is_floating_point and not whole:
        dtype = torch.float32
    if dtype == torch.float64 and torch.device(device or "cpu").type == "mps":
        dtype = torch.float32
    timesteps = torch.from_numpy(told).to(dtype).to(device)
    told = timesteps.cpu().double().numpy()
    return Plan(model, method, guidance, tableau.times, tableau, timesteps, _levels(model.path, tableau), told)


def _levels(path: Path, tableau: Tableau) -> Tensor:
    """The noise levels of the calls and of the data, as a host counts them."""
    if isinstance(path, EDM | Rectified | CondOT):  # the clock itself, also where it is the weight of the data
        return torch.from_numpy(np.append(tableau.calls[:, 0], path.t_data)).float()
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.append(tableau.calls[:, 2] / tableau.calls[:, 1], 0.0)).float()


def _told(model: Model, rows: HostRows, clock: np.ndarray, told: np.ndarray) -> np.ndarray:
    """What the network is told at the calls: at nodes what the host tells, between them by the clock.

    Where the host tells a flow's network something else than its clock (a pipeline's own timesteps, which the shift
    does not reach), what lies between is interpolated.
    """
    nodes = rows.times[:-1]
    usual = model.network_time(torch.from_numpy(nodes.copy())).cpu().double().numpy()
    if model.predicts == "velocity" and np.abs(usual - rows.told).max() > 1.0 + 1e-3 * np.abs(usual).max():
        end = model.network_time(torch.tensor([rows.times[-1]], dtype=torch.float64, device="cpu")).double().numpy()
        order = np.argsort(rows.times)
        told = np.interp(clock, rows.times[order], np.append(rows.told, end)[order])
    for i, time in enumerate(clock):
        hit = np.flatnonzero(np.abs(nodes - time) <= 1e-9 * max(1.0, abs(time)))
        if len(hit):
            told[i] = rows.told[hit[0]]
    return told
