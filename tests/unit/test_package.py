"""What `import headway` and its rooms give, and what they say of what is not there."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import headway
import headway.backends
import headway.scheduler
from headway.backends.redis import RedisBackend


@pytest.mark.parametrize("module", [headway, headway.backends, headway.scheduler])
def test_dir_gives_the_public_names_in_order_and_each_is_there(module: ModuleType) -> None:
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", [headway, headway.backends])
def test_a_name_that_is_not_there_is_an_attribute_error(module: ModuleType) -> None:
    with pytest.raises(AttributeError) as error:
        _ = module.nothing
    assert str(error.value) == f"module '{module.__name__}' has no attribute 'nothing'"


@pytest.mark.parametrize("name", ["FallbackRateLimiter", "InFlightRequest", "ModelLimits"])
def test_what_is_yet_to_come_says_so(name: str) -> None:
    with pytest.raises(ImportError, match=rf"'{name}' is not there yet: .*headway\[redis\]"):
        getattr(headway.backends, name)


@pytest.mark.parametrize("module", ["headway", "headway.backends"])
def test_the_redis_backend_says_which_extra_it_needs(module: str) -> None:
    code = f"import sys; sys.modules['redis'] = None; from {module} import RedisBackend"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(
        "ImportError: 'RedisBackend' requires the 'redis' extra. "
        "Install with: pip install headway[redis]\n"
    )


def test_the_redis_backend_is_one_object_wherever_it_is_asked_for() -> None:
    assert headway.RedisBackend is headway.backends.RedisBackend is RedisBackend


def test_everything_can_be_imported_at_once() -> None:
    namespace: dict[str, object] = {}
    exec("from headway import *\nfrom headway.backends import *", namespace)
    assert {"TEXT", "RateLimiterConfig", "BaseBackend", "HealthCheckResult"} <= set(namespace)


def test_importing_headway_imports_no_extra_and_nothing_slow() -> None:
    code = "import sys, headway; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"httpx", "redis", "prometheus_client", "email.utils", "uvloop"}


def test_the_package_runs_as_its_command_does() -> None:
    command = [sys.executable, "-m", "headway", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"headway {headway.__version__}\n"), done.stderr
