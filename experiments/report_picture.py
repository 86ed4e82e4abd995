"""What does the report look like? The README's picture, from a run folder: on a screen, and on a phone in the dark.

    torchimpt plan experiments/cases/hn.toml --out runs/demo
    python experiments/report_picture.py --run runs/demo --out docs/report.png

It needs Chromium (`apt-get install chromium`) and takes about five seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from torchimpt.studies.browser import Browser, browser
from torchimpt.studies.flags import flags

HEIGHT = 1580
"""CSS pixels of the pages that are shown."""
GAP = 28
READY = "[...document.querySelectorAll('[data-slices]')].every(node => node.dataset.dose)"


@dataclass(frozen=True)
class Config:
    """Flags."""

    run: str = "runs/demo"
    out: str = "docs/report.png"


def shot(page: Browser, report: Path, width: int, *, phone: bool = False) -> Image.Image:
    """The top of the page."""
    page.open(report, width, HEIGHT, phone=phone, dark=phone)
    page.wait(READY)
    return Image.open(BytesIO(page.picture())).convert("RGB")


def main(config: Config) -> None:
    """Open the report twice, put the pictures side by side, write them as one of 256 colours."""
    report = Path(config.run) / "report.html"
    with browser() as page:
        parts = [shot(page, report, 1240), shot(page, report, 390, phone=True)]
    picture = Image.new("RGB", (sum(part.width for part in parts) + GAP, HEIGHT), "white")
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (parts[0].width + GAP, 0))
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {picture.width} x {picture.height} pixels, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(flags(Config, __doc__))
