"""Puts the measured tables of bench/results/ into the site, beside the pages that quote them, outside of the navigation."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the tables, as pages below results/."""
    for path in sorted(RESULTS.glob("[!0-9]*.md")):
        files.append(
            File.generated(config, f"results/{path.name}", abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Turn links that hold in the repository into links that hold in the site."""
    if page.file.src_uri.startswith("results/"):
        return markdown.replace("](../../docs/", "](../")
    return markdown.replace("](../bench/results/", "](results/").replace("](../../bench/results/", "](../results/")
