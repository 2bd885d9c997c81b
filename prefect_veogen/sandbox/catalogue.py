"""The models on sale: shapes as documented, unknown numbers invented.

What the public documentation states is cited beside the model. Every other figure is an INVENTION of the sandbox,
plausible but not the vendor's: never plan real spending with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["image", "video"]

PROMPT_LIMIT = 2000
"""Characters a prompt may have, documented at /api-reference/generations/create."""

# INVENTION: that Seedance is cheaper with a reference video is documented, by how much is not readable.
REFERENCE_VIDEO_FACTOR = Decimal("0.6")

_NO_MULTIPLIERS: Mapping[str, Decimal] = MappingProxyType({})


@dataclass(frozen=True)
class Model:
    """One model of the catalogue: what it accepts and what it costs."""

    slug: str
    label: str
    kind: Kind
    price_usd: Decimal
    usage_key: str
    aspect_ratios: tuple[str, ...]
    resolutions: tuple[str, ...] = ()
    multipliers: Mapping[str, Decimal] = field(default_factory=lambda: _NO_MULTIPLIERS)
    per_second: bool = False
    durations: tuple[int, ...] = ()
    fixed_seconds: int = 8
    modes: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    max_images: int = 0
    max_videos: int = 0
    max_audios: int = 0
    flags: tuple[str, ...] = ()
    cheaper_with_video: bool = False

    def supported_params(self) -> tuple[str, ...]:
        """List the request fields this model accepts, besides `model`."""
        optional = {
            "duration": self.durations,
            "aspect_ratio": self.aspect_ratios,
            "resolution": self.resolutions,
            "image_urls": self.max_images,
            "video_urls": self.max_videos,
            "audio_urls": self.max_audios,
            "mode": self.modes,
            "style": self.styles,
        }
        return ("prompt", *(name for name, given in optional.items() if given), *self.flags)

    def choices(self) -> dict[str, tuple[str | int, ...]]:
        """List the allowed values of each option that has a list of them."""
        every: dict[str, tuple[str | int, ...]] = {
            "aspect_ratio": self.aspect_ratios,
            "resolution": self.resolutions,
            "duration": self.durations,
            "mode": self.modes,
            "style": self.styles,
        }
        return {name: values for name, values in every.items() if values}

    def url_limits(self) -> dict[str, int]:
        """Return how many URLs each kind of input may have, by field."""
        every = {"image_urls": self.max_images, "video_urls": self.max_videos, "audio_urls": self.max_audios}
        return {name: limit for name, limit in every.items() if limit}

    def defaults(self) -> dict[str, Any]:
        """Return the defaults: what an option is where a request leaves it out.

        The first ratio is documented as the default at /api-reference/generations/create; taking the first
        resolution and duration as well is an invention.
        """
        firsts = {"aspect_ratio": self.aspect_ratios, "resolution": self.resolutions, "duration": self.durations}
        return {name: values[0] for name, values in firsts.items() if values}

    def seconds(self, options: Mapping[str, Any]) -> int:
        """Return how many seconds a clip of this model lasts."""
        chosen: int = options.get("duration", self.defaults().get("duration", self.fixed_seconds))
        return chosen

    def price(self, options: Mapping[str, Any]) -> Decimal:
        """Return the price in USD: base, times the resolution multiplier, times seconds where billed per second."""
        resolution = options.get("resolution", self.defaults().get("resolution", ""))
        price = self.price_usd * self.multipliers.get(resolution, Decimal(1))
        if self.per_second:
            price *= self.seconds(options)
        if self.cheaper_with_video and options.get("video_urls"):
            price *= REFERENCE_VIDEO_FACTOR
        return price.quantize(Decimal("0.0001")).normalize() + Decimal("0.00")

    def document(self) -> dict[str, Any]:
        """Shape the model as documented at /api-reference/models/get.

        An empty map is sent as `[]`, as a PHP server would send it: an invention, which clients have to tolerate.
        """
        return {
            "slug": self.slug,
            "label": self.label,
            "type": self.kind,
            "price_usd": float(self.price_usd),
            "multiply_by_duration": self.per_second,
            "resolution_multipliers": {name: _number(factor) for name, factor in self.multipliers.items()} or [],
            "supported_params": list(self.supported_params()),
            "aspect_ratios": list(self.aspect_ratios),
            "resolutions": list(self.resolutions),
            "durations": list(self.durations),
            "modes": list(self.modes),
            "docs_url": f"https://veogen.studio/api-reference/models/{self.slug}",
        }


def catalogue() -> dict[str, Model]:
    """List all models by slug."""
    return {model.slug: model for model in (*_veo(), *_sora(), *_seedance(), *_grok(), *_pictures())}


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _factors(**factors: str) -> Mapping[str, Decimal]:
    return MappingProxyType({name.removeprefix("x"): Decimal(factor) for name, factor in factors.items()})


def _veo() -> tuple[Model, ...]:
    return (
        Model(  # everything documented at /api-reference/models/get, except the number of images (INVENTION)
            slug="veo-3.1-fast",
            label="Veo 3.1 Fast",
            kind="video",
            price_usd=Decimal("0.30"),
            usage_key="veo_3_1_fast",
            aspect_ratios=("16:9", "9:16"),
            resolutions=("720p", "1080p", "4k"),
            multipliers=_factors(x720p="1", x1080p="1", x4k="3"),
            durations=(8,),
            modes=("frame", "ingredient"),
            max_images=3,
        ),
        Model(  # documented at /api-reference/models/veo-3-1-lite; price and multipliers are INVENTIONS
            slug="veo-3.1-lite",
            label="Veo 3.1 Lite",
            kind="video",
            price_usd=Decimal("0.10"),
            usage_key="veo_3_1_lite",
            aspect_ratios=("16:9", "9:16"),
            resolutions=("720p", "1080p", "4k"),
            multipliers=_factors(x720p="1", x1080p="1", x4k="3"),
        ),
    )


def _sora() -> tuple[Model, ...]:
    # Documented at /api-reference/generations/create: durations and styles. INVENTIONS: all else.
    styles = ("none", "thanksgiving", "comic", "news", "selfie", "nostalgic", "anime")
    return (
        Model(
            slug="sora-2",
            label="Sora 2",
            kind="video",
            price_usd=Decimal("0.25"),
            usage_key="sora_2",
            aspect_ratios=("16:9", "9:16"),
            durations=(10, 15),
            styles=styles,
            max_images=1,
            flags=("watermark", "private"),
        ),
        Model(
            slug="sora-2-pro",
            label="Sora 2 Pro",
            kind="video",
            price_usd=Decimal("1.00"),
            usage_key="sora_2_pro",
            aspect_ratios=("16:9", "9:16"),
            resolutions=("720p", "1080p"),
            multipliers=_factors(x720p="1", x1080p="1.6"),
            durations=(10, 15, 25),
            styles=styles,
            max_images=1,
            flags=("watermark", "private"),
        ),
    )


def _seedance() -> tuple[Model, ...]:
    # Documented at /api-reference/generations/create: per second, 4-15 s, the 720p rate and its ratio to 480p,
    # cheaper with a reference video. INVENTIONS: all else, including that the base price is the 480p one.
    shape: dict[str, Any] = {
        "kind": "video",
        "aspect_ratios": ("16:9", "9:16", "1:1", "4:3", "3:4", "21:9"),
        "resolutions": ("480p", "720p"),
        "multipliers": _factors(x480p="1", x720p="2.15"),
        "per_second": True,
        "durations": tuple(range(4, 16)),
        "max_images": 9,
        "max_videos": 3,
        "max_audios": 3,
        "cheaper_with_video": True,
    }
    return (
        Model("seedance-2.0", "Seedance 2.0", price_usd=Decimal("0.1321"), usage_key="seedance_2", **shape),
        Model(
            "seedance-2.0-fast", "Seedance 2.0 Fast", price_usd=Decimal("0.1064"), usage_key="seedance_2_fast", **shape
        ),
    )


def _grok() -> tuple[Model, ...]:
    return (
        Model(  # price, durations, modes documented at /api-reference/generations/create; INVENTIONS: all else
            slug="grok-video-1",
            label="Grok Video 1",
            kind="video",
            price_usd=Decimal("0.03"),
            usage_key="grok_video_1",
            aspect_ratios=("16:9", "9:16", "1:1", "3:2", "2:3"),
            per_second=True,
            durations=tuple(range(6, 31)),
            modes=("custom", "normal", "fun", "spicy"),
            max_images=1,
        ),
    )


def _pictures() -> tuple[Model, ...]:
    # Documented: gpt-4o-image costs $0.02, gpt-image-2 starts at $0.016, goes up to 4K, has 13 ratios between 21:9
    # and 9:21 with 3:2 among them and takes 16 images; others take up to 14. INVENTIONS: all else.
    wide: tuple[str, ...] = ("16:9", "1:1", "9:16", "4:3", "3:4", "3:2", "2:3")
    all_ratios = ("1:1", "21:9", "2:1", "16:9", "3:2", "4:3", "5:4", "4:5", "3:4", "2:3", "9:16", "1:2", "9:21")
    sizes = ("1K", "2K", "4K")
    factors = _factors(x1K="1", x2K="1.5", x4K="3")
    return (
        Model("gpt-4o-image", "GPT-4o Image", "image", Decimal("0.02"), "gpt4o_image", wide, max_images=14),
        Model(
            "gpt-image-2",
            "GPT-Image-2",
            "image",
            Decimal("0.016"),
            "gpt_image_2",
            all_ratios,
            resolutions=sizes,
            multipliers=factors,
            max_images=16,
        ),
        Model(
            "seedream-4.5",
            "Seedream 4.5",
            "image",
            Decimal("0.03"),
            "seedream_4_5",
            wide,
            resolutions=("2K", "4K"),
            multipliers=_factors(x2K="1", x4K="2"),
            max_images=14,
        ),
        Model(
            "seedream-5.0-lite", "Seedream 5.0 Lite", "image", Decimal("0.025"), "seedream_5_lite", wide, max_images=14
        ),
        Model(
            "nano-banana-pro",
            "Nano Banana Pro",
            "image",
            Decimal("0.05"),
            "nano_banana_pro",
            wide,
            resolutions=sizes,
            multipliers=factors,
            max_images=14,
        ),
        Model(
            "nano-banana-2",
            "Nano Banana 2",
            "image",
            Decimal("0.03"),
            "nano_banana_2",
            wide,
            resolutions=("0.5K", *sizes),
            multipliers=MappingProxyType({"0.5K": Decimal("0.75"), **factors}),
            max_images=14,
        ),
    )
