from __future__ import annotations

import pytest

from server.admission import Admission
from server.errors import Overloaded, QuotaExceeded


def test_what_is_too_much_is_refused_until_something_ends() -> None:
    admission = Admission(places=lambda: 2, of_tenant=0)
    with admission.place("one"):
        with admission.place("one"):
            assert admission.taken == 2
            with pytest.raises(Overloaded), admission.place("two"):
                raise AssertionError
        with admission.place("two"):
            assert admission.taken == 2
    assert admission.taken == 0


def test_no_tenant_takes_what_is_another_s() -> None:
    admission = Admission(places=lambda: 3, of_tenant=1)
    with admission.place("one"):
        with pytest.raises(QuotaExceeded), admission.place("one"):
            raise AssertionError
        with admission.place("two"), admission.place("three"):
            with pytest.raises(QuotaExceeded), admission.place("two"):
                raise AssertionError
            with pytest.raises(Overloaded), admission.place("four"):
                raise AssertionError
    with admission.place("one"):
        assert admission.taken == 1


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(places=lambda: 1, of_tenant=1)
    with pytest.raises(ValueError, match="it failed"), admission.place("one"):
        raise ValueError("it failed")
    with admission.place("one"):
        assert admission.taken == 1
