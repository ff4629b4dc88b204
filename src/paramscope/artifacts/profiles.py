"""Records of DP-SGD's cost, a file a variant: what they must hold, their order, and ratios.

A variant is a method with its options, joined by `+`: `bk+chunk+checkpoint`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from paramscope.errors import ArtifactError
from paramscope.names import DPSGD_PARTS

Profile = Mapping[str, Any]
VANILLA = "vanilla"  # the variant that all others are compared with
METHODS = {
    "vanilla": "vanilla",
    "opacus_hooks": "Opacus hooks",
    "opacus_ghost": "Opacus ghost",
    "ghost": "ghost",
    "flash": "flash",
    "bk": "BK",
    "per_layer": "per-layer",
    "micro": "micro",
}
NEEDED = (
    *("workload", "variant", "method", "options", "device", "device_type"),
    *("predicted", "refused", "peak", "breakdown", "explained", "timeline", "timing"),
)


def of_workload(profiles: Iterable[Profile], workload: str) -> list[Profile]:
    """The profiles, checked, vanilla first, then by method and number of options.

    Raises:
        ArtifactError: no profiles, one that is not whole, whose parts don't add up to its
            peak or that is of another workload, or two of one variant.
    """
    found: dict[str, Profile] = {}
    for profile in profiles:
        variant = _checked(profile)
        if profile["workload"]["name"] != workload:
            raise ArtifactError(
                f"{variant} was profiled on {profile['workload']['name']}, not on {workload}; "
                f"give profiles of {workload} alone"
            )
        if variant in found:
            raise ArtifactError(f"{variant} has two profiles; give each variant once")
        found[variant] = profile
    if not found:
        raise ArtifactError(f"no profiles of {workload}; give that of one variant or more")
    first, *others = found.values()
    for other in others:
        for field, value in first["workload"].items():
            if other["workload"].get(field) != value:
                raise ArtifactError(
                    f"{first['variant']} and {other['variant']} differ in the workload's {field} "
                    f"({value}, {other['workload'].get(field)}); profile them anew"
                )
    return sorted(found.values(), key=_place)


def variant_told(variant: str) -> str:
    """`BK + chunk + checkpoint` for `bk+chunk+checkpoint`."""
    method, *options = variant.split("+")
    return " + ".join([METHODS.get(method, method), *options])


def told(profile: Profile) -> str:
    """The profile's variant in words, and that it was predicted if it was."""
    return variant_told(profile["variant"]) + (" (predicted)" if profile["predicted"] else "")


def workload_told(profile: Profile) -> str:
    """The family and size of the model that was profiled, and the batch."""
    of = profile["workload"]
    millions = f"{of['parameters'] / 1e6:,.4g}"
    return (
        f"{of['family']}, {of['layers']} layers × {of['hidden']:,}, {millions} M parameters; "
        f"batch {of['batch']} × {of['length']:,} tokens"
    )


def devices_told(profiles: Iterable[Profile]) -> str:
    """The devices that were profiled on."""
    return " | ".join(dict.fromkeys(profile["device"] for profile in profiles))


def vanilla_of(profiles: Iterable[Profile]) -> Profile | None:
    """The profile that others are compared with; none where it is absent or was refused."""
    return next((p for p in profiles if p["variant"] == VANILLA and not p["refused"]), None)


def memory_ratio(profile: Profile, vanilla: Profile | None) -> float | None:
    """Peak memory in units of vanilla's; none without both, or on another type of device."""
    if vanilla is None or profile["refused"] or profile["device_type"] != vanilla["device_type"]:
        return None
    return float(profile["peak"]["bytes"] / vanilla["peak"]["bytes"])


def time_ratio(profile: Profile, vanilla: Profile | None) -> float | None:
    """Median time of an iteration in units of vanilla's; none without both, or elsewhere."""
    if vanilla is None or not (profile["timing"] and vanilla["timing"]):
        return None
    if profile["device"] != vanilla["device"]:
        return None
    return float(profile["timing"]["median_s"] / vanilla["timing"]["median_s"])


def _checked(profile: Profile) -> str:
    """The profile's variant; raises where it is not whole."""
    missing = [field for field in NEEDED if field not in profile]
    if missing:
        raise ArtifactError(f"not a profile of DP-SGD: lacks {', '.join(missing)}")
    variant, parts = str(profile["variant"]), profile["breakdown"]
    if profile["refused"]:
        return variant
    if not (profile["peak"] and parts and profile["peak"]["bytes"] > 0):
        raise ArtifactError(f"the profile of {variant} has no peak; profile it anew")
    if set(parts) != set(DPSGD_PARTS):
        odd = ", ".join(sorted(set(parts) ^ set(DPSGD_PARTS)))
        raise ArtifactError(f"the profile of {variant} lacks or adds parts: {odd}; profile it anew")
    if sum(parts.values()) != profile["peak"]["bytes"]:
        raise ArtifactError(
            f"the parts of {variant} add up to {sum(parts.values()):,} bytes, its peak is "
            f"{profile['peak']['bytes']:,}; profile it anew"
        )
    return variant


def _place(profile: Profile) -> tuple[int, int, str]:
    method, variant = profile["method"], profile["variant"]
    order = list(METHODS)
    return order.index(method) if method in order else len(order), variant.count("+"), variant
