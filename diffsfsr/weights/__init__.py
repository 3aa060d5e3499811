"""Every pretrained file by name: found, pulled and verified here only. Light: no torch, and no network until `pull`.

zoo       the table: source, licence, sha256, input convention of every file
places    where files lie: find, resolve, check
records   what this machine remembers: hashes of first pulls, accepted licences
contents  whether a file is of the kind that its name says
pulling   bringing files here; `download` is the network
needs     which files a preset needs, and whether their terms suit it
names     which words its settings may hold
"""

from diffsfsr.weights.names import SMALL, check_names
from diffsfsr.weights.needs import (
    absent_teachers,
    expand,
    files_of,
    refuse_non_commercial,
    restricted,
    used_by,
    used_to_align,
    used_to_prepare,
    without_absent_teachers,
)
from diffsfsr.weights.places import Status, check, file_sha256, find, find_folder, resolve, verified
from diffsfsr.weights.pulling import pull, pull_all
from diffsfsr.weights.records import accepted, pinned, pins
from diffsfsr.weights.zoo import GROUPS, ZOO, Entry, entry

__all__ = [
    "GROUPS",
    "SMALL",
    "ZOO",
    "Entry",
    "Status",
    "absent_teachers",
    "accepted",
    "check",
    "check_names",
    "entry",
    "expand",
    "file_sha256",
    "files_of",
    "find",
    "find_folder",
    "pinned",
    "pins",
    "pull",
    "pull_all",
    "refuse_non_commercial",
    "resolve",
    "restricted",
    "used_by",
    "used_to_align",
    "used_to_prepare",
    "verified",
    "without_absent_teachers",
]
