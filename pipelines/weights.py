"""`diffsfsr weights`: the pretrained files listed, brought and checked. Each verb takes the parsed arguments and returns its answer."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any


def listed(args: Namespace) -> Any:
    """Every file of the zoo and where it is."""
    from diffsfsr import weights

    rows = []
    for name, entry in weights.ZOO.items():
        path, sha256 = weights.find(name), weights.pinned(entry)
        rows.append({**entry.__dict__, "sha256": sha256, "pinned": sha256 is not None, "found": str(path) if path else ""})
    return rows if args.json else _table(rows)


def checked(args: Namespace) -> Any:
    """Reads every file that is here and compares its hash; exit code 1 where one is wrong or cannot be read."""
    from diffsfsr.weights import check

    rows = [status.__dict__ for status in check()]
    for state, what in (("wrong", "not the files that they should be"), ("unreadable", "files that cannot be read")):
        if named := [row["name"] for row in rows if row["state"] == state]:
            print(f"diffsfsr: {what}: {', '.join(named)}; remove them and pull again", file=sys.stderr)
            args.code = 1
    if args.json:
        return rows
    return "\n".join(f"{row['name']:36} {row['state']:9} {' '.join(str(row[k]) for k in ('path', 'detail') if row[k])}" for row in rows)


def pulled(args: Namespace) -> Any:
    """Brings files, groups of them or what presets need."""
    from diffsfsr import weights

    names = [name for word in args.name for name in weights.expand(word)]
    files = {name: str(path) for name, path in weights.pull_all(names, args.mirror, args.accept_licence).items()}
    return {"name": args.name[0], "file": files[names[0]]} if args.name == names[:1] == names else {"files": files}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("name", "role", "licence", "commercial", "size", "hash", "where")]
    for r in rows:
        size, pin = f"{r['size']:,}" if r["size"] else "?", "pinned" if r["pinned"] else "unpinned"
        lines.append((r["name"], r["role"], r["licence"], "yes" if r["commercial"] else "no", size, pin, r["found"] or "missing"))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join("  ".join([*(f"{text:{w}}" for text, w in zip(line, widths, strict=False)), line[6]]) for line in lines)
