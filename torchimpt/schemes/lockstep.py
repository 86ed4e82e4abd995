"""Several solvers on one matrix in lockstep: their products become one, which reads the matrix once for all.

Each job runs in a thread of its own, but only one runs at a time: a thread is a job that can wait. It runs until it asks for a product,
and when all jobs have asked, the products of one kind are done together. So jobs need no locks, and what one computes does not depend on
the others: each column of the product is summed in the same order in any company, and in none (`torchimpt.dose.csr`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from torchimpt.dose.linear import StoredDose

T = TypeVar("T")


class _Seat(Generic[T]):
    """A job and what it waits for."""

    def __init__(self, job: Callable[[], T]) -> None:
        self.job, self.go = job, threading.Semaphore(0)
        self.asked: tuple[StoredDose, str, Tensor] | None = None
        self.answer: Tensor | None = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self.ended = False


class Lockstep:
    """Runs jobs by turns; `of` makes the matrices that they meet at."""

    def __init__(self) -> None:
        self._seats: dict[int, _Seat] = {}
        self._back = threading.Semaphore(0)
        self._stopped = False

    def of(self, linear: StoredDose) -> SharedDose:
        """The matrices, for jobs of `run`."""
        return SharedDose(linear, self)

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """What the jobs return, or the error that each ended with. An interrupt ends all of them, and goes up."""
        seats = [_Seat(job) for job in jobs]
        threads = [threading.Thread(target=self._sit, args=(seat,)) for seat in seats]
        for thread in threads:
            thread.start()
        running = 0  # of the semaphores: whether a job has been let go that has not come back
        try:
            for seat in seats:
                running += 1
                self._turn(seat)
                running -= 1
            while group := self._next(seats):
                self._answer(group)
                for seat in group:
                    running += 1
                    self._turn(seat)
                    running -= 1
        except BaseException:
            self._stopped = True
            if running:
                self._back.acquire()
            for seat in seats:
                while not seat.ended:
                    self._turn(seat)
            raise
        finally:
            for thread in threads:
                thread.join()
        return [seat.error if isinstance(seat.error, Exception) else self._result(seat) for seat in seats]

    @staticmethod
    def _result(seat: _Seat[T]) -> T:
        if seat.error is not None:
            raise seat.error
        assert seat.ended
        return seat.result  # type: ignore[return-value]  # a job may return None

    def _turn(self, seat: _Seat) -> None:
        """Let a job go on until it asks for a product, or ends."""
        seat.go.release()
        self._back.acquire()

    def _sit(self, seat: _Seat) -> None:
        """A job's thread."""
        self._seats[threading.get_ident()] = seat
        seat.go.acquire()
        try:
            if not self._stopped:
                seat.result = seat.job()
        except BaseException as error:
            seat.error = error
        finally:
            seat.ended = True
            del self._seats[threading.get_ident()]
            self._back.release()

    def _next(self, seats: Sequence[_Seat]) -> list[_Seat]:
        """The largest group that asks for the same kind of product with the same matrices; empty when all jobs have ended."""
        groups: dict[tuple[int, str], list[_Seat]] = {}
        for seat in seats:
            if seat.asked is not None:
                groups.setdefault((id(seat.asked[0]), seat.asked[1]), []).append(seat)
        return max(groups.values(), key=len, default=[])

    def _answer(self, group: Sequence[_Seat]) -> None:
        """Do a group's products together."""
        asked = [seat.asked for seat in group if seat.asked is not None]
        linear, kind, _ = asked[0]
        found = getattr(linear, kind)(torch.stack([vector for _, _, vector in asked]))
        for seat, one in zip(group, found, strict=True):
            seat.asked, seat.answer = None, one

    def ask(self, linear: StoredDose, kind: str, vector: Tensor) -> Tensor:
        """A product, in a job's thread; elsewhere it is done at once."""
        seat = self._seats.get(threading.get_ident())
        if seat is None:
            return getattr(linear, kind)(vector.unsqueeze(0))[0]
        seat.asked = linear, kind, vector
        self._back.release()
        seat.go.acquire()
        if self._stopped:
            raise KeyboardInterrupt
        assert seat.answer is not None
        answer, seat.answer = seat.answer, None
        return answer


class SharedDose:
    """A `LinearDose` whose products are done together with those of the other jobs of a `Lockstep`."""

    def __init__(self, linear: StoredDose, lockstep: Lockstep) -> None:
        self._linear, self._lockstep = linear, lockstep
        self.n_bytes, self.n_nonzeros = linear.n_bytes, linear.n_nonzeros

    def forward(self, weight: Tensor) -> Tensor:
        """`D^k = A^k w` for every scenario."""
        return self._lockstep.ask(self._linear, "forward_many", weight.detach())

    def adjoint(self, residual: Tensor) -> Tensor:
        """`sum_k A^k' r^k`."""
        return self._lockstep.ask(self._linear, "adjoint_many", residual.detach())

    def columns(self, spots: Tensor, change: Tensor) -> Tensor:
        """`A^k[:, spots] change` for every scenario: of few spots, which are each job's own."""
        return self._linear.columns(spots, change)

    def release(self) -> None:
        """Other jobs have the matrices, too."""
