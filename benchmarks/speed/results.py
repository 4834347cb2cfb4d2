"""Where the tables go, and what each says of the command and the machine that made it."""

from pathlib import Path

import cpuinfo
from rich.console import Console

from tfalign.jobs import files

FOLDER = Path(__file__).parent.parent / "results" / "speed"


def processor():
    """Its name, and the widest vectors that it takes: convolutions are two to four times as fast by AVX-512."""
    about = cpuinfo.get_cpu_info()
    known = [title for flag, title in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in about.get("flags", ())]
    return " ".join([about.get("brand_raw", "unknown"), *known[:1]])


def write(name, command, found, lines, **settings):
    """Writes what was `found` as `name`.json and its table, `lines` of Markdown, as `name`.md, and prints the table."""
    versions = {**files.versions(), "processor": processor(), **settings}
    table = [f"`{command}`", "", ", ".join(f"{key} {value}" for key, value in versions.items()), "", *lines]
    FOLDER.mkdir(parents=True, exist_ok=True)
    files.write_json(FOLDER / f"{name}.json", {"command": command, "versions": versions, **found})
    files.write_text(FOLDER / f"{name}.md", "\n".join(table))
    Console().print("\n".join(table), highlight=False, soft_wrap=True)
